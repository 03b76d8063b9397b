"""RLR From ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from rlr_core.errors import UserError

from . import sockets
from .schema import CATEGORY, Node, RlrModel, opt, rare

AUTO = "auto"
GUIDANCE = {AUTO: None, "cfg": "cfg", "embedded": "embedded", "none (distilled)": "none"}
"""Choice of the widget -> what the engine calls it."""
WEIGHTS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt")
DISTILLED = re.compile(
    r"turbo|lightning|schnell|hyper|lcm|distill|dmd|(?<!\d)[1-8][-_ ]?step|klein(?!.*base)", re.IGNORECASE
)
"""What is in the file names of models that take few steps and no cfg."""


class FromComfy(Node):
    """Whatever MODEL, CLIP and VAE stock loaders and nodes make, as a model to be trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_FromComfy",
            display_name="RLR From ComfyUI",
            category=CATEGORY,
            description="Trains whatever ComfyUI has loaded: SDXL, Flux, Z-Image, Qwen-Image, Wan and more, "
            "quantized or not, with the LoRAs and model nodes before it as part of its base. RLR Load "
            "Checkpoint is for Stable Diffusion 1 and 2 and the built-in model.",
            inputs=[
                io.Model.Input("model", tooltip="From a stock loader, or from nodes after it."),
                io.Clip.Input("clip", tooltip="What encodes the prompts."),
                io.Vae.Input("vae", tooltip="What turns latents into the pictures that the reward sees."),
                io.Latent.Input(
                    "latent", tooltip="An empty latent: the size of the pictures, and the frames of a video."
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.SCHEDULER_NAMES),
                    default="simple",
                    tooltip="As in KSampler. With eta 0 training samples as euler does with it.",
                ),
                rare(
                    io.Combo.Input,
                    "guidance_kind",
                    options=list(GUIDANCE),
                    default=AUTO,
                    tooltip="cfg: two evaluations a step. embedded: the model is told the scale (Flux dev). "
                    "none: distilled and turbo models, whatever guidance says. auto asks the model, and the "
                    "name of its file for words such as turbo.",
                ),
            ],
            outputs=[RlrModel.Output(display_name="model", tooltip="For RLR Train and RLR Sample.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            **opt(search_aliases=["train lora", "native model", "flux", "qwen", "z-image", "wan", "sdxl"]),
        )

    @classmethod
    def run(
        cls, model: Any, clip: Any, vae: Any, latent: Any, scheduler: str, guidance_kind: str
    ) -> io.NodeOutput:
        for name, value in (("model", model), ("clip", clip), ("vae", vae), ("latent", latent)):
            if value is None:
                raise UserError(f"Input {name!r} of RLR From ComfyUI is empty: its loader gave nothing.")
        file = weights_file(cls.hidden.prompt or {}, str(cls.hidden.unique_id))
        kind = GUIDANCE[guidance_kind]
        if guidance_kind == AUTO and file and DISTILLED.search(file):
            kind = "none"
        return io.NodeOutput(sockets.Native.of(model, clip, vae, latent, scheduler, kind, file))


def weights_file(prompt: Mapping[str, Any], node: str) -> str | None:
    """Name, without ending, of the file that the MODEL of a node comes from, as the workflow tells it.

    prompt: what is being executed: {node id: {'inputs': {name: value or [node id, output]}}}.
    """
    seen: set[str] = set()
    waiting = [(node, ("model",))]
    while waiting:
        place, names = waiting.pop(0)
        if place in seen or place not in prompt:
            continue
        seen.add(place)
        inputs = prompt[place].get("inputs", {})
        files = [value for value in inputs.values() if isinstance(value, str) and value.endswith(WEIGHTS)]
        links = [inputs[name] for name in names if isinstance(inputs.get(name), list)]
        if files and place != node and not links:
            return PurePosixPath(files[0].replace("\\", "/")).stem
        waiting += [(str(link[0]), ("model", "diffusion_model", "unet")) for link in links]
    return None
