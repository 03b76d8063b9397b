"""RLR From ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from rlr_core.errors import UserError

from . import host, sockets
from .schema import CATEGORY, Node, RlrModel, opt, rare

AUTO = "auto"
GUIDANCE = {AUTO: None, "cfg": "cfg", "embedded": "embedded", "none (distilled)": "none"}
"""Choice of the widget -> what the engine calls it."""
WEIGHTS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt")
LOW_NOISE = re.compile(r"low[-_]?noise", re.IGNORECASE)
MODEL_LINK = re.compile(r"(diffusion_)?model|unet")
"""How inputs begin that a MODEL comes in by."""


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
                    "none: distilled and turbo models, whatever guidance says. auto asks the model; where it "
                    "does not tell, a word such as turbo in its file's name lets RLR Train leave cfg out "
                    "unless guidance is set there.",
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
        node = str(cls.hidden.unique_id)
        files = weights_files(cls.hidden.prompt or {}, node)
        made = sockets.Native.of(model, clip, vae, latent, scheduler, GUIDANCE[guidance_kind], files)
        host.say(node, _told(made, files))
        return io.NodeOutput(made)


def _told(made: sockets.Native, files: list[str]) -> str:
    """What is known of the model, for the node."""
    kind = f"distilled ({made.distilled})" if made.distilled else "not distilled, as far as it tells"
    told = f"{made.name}: {kind}. Left at 0: guidance {made.guidance:g}, {made.steps} steps."
    if any(LOW_NOISE.search(file) for file in files):
        told += " It was made for the last steps of Wan 2.2 14B alone, and is trained on all of them."
    return told


def weights_files(prompt: Mapping[str, Any], node: str) -> list[str]:
    """Names, without endings, of the files that the MODEL of a node is made of, as the workflow tells it.

    The file of its loader is the first; those of nodes on the way, such as LoRAs, follow.
    prompt: what is being executed: {node id: {'inputs': {name: value or [node id, output]}}}.
    """
    own: list[str] = []
    others: list[str] = []
    waiting, seen = [node], set()
    while waiting:
        place = waiting.pop(0)
        if place in seen or place not in prompt:
            continue
        seen.add(place)
        inputs = prompt[place].get("inputs", {})
        links = [
            value for name, value in inputs.items() if isinstance(value, list) and MODEL_LINK.match(name)
        ]
        if place != node:
            names = [value for value in inputs.values() if isinstance(value, str) and value.endswith(WEIGHTS)]
            (others if links else own).extend(PurePosixPath(name.replace("\\", "/")).stem for name in names)
        waiting += [str(link[0]) for link in links]
    return [*own, *others] if own else []
