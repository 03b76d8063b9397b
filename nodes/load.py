"""RLR Load Checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from rlr_core.errors import UserError

from . import host, sockets
from .schema import CATEGORY, Node, RlrModel, opt, rare

QUANTIZED = ("8bit", "4bit")
DTYPES = ["auto", "bf16", "fp16", "fp32", *QUANTIZED]
ONLY_IN_COMFYUI = ("sd3", "flux", "flux2", "qwen-image", "z-image", "wan", "unet", "gguf", "quantized")
"""Kinds of files that ComfyUI's own loaders take."""


class LoadCheckpoint(Node):
    """Says which model is meant, after a look at its header; the weights are read when they are needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_LoadCheckpoint",
            display_name="RLR Load Checkpoint",
            category=CATEGORY,
            description="The model to be trained: a checkpoint of Stable Diffusion 1, 2 or XL, a diffusers "
            "folder (those, Stable Diffusion 3, Flux, FLUX.2 klein, Qwen-Image, Z-Image, Wan, AnimateDiff), "
            "or the small built-in one. For whatever else ComfyUI loads: RLR From ComfyUI. Nothing is "
            "downloaded.",
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=host.model_names(),
                    tooltip="A .safetensors file from models/checkpoints, a folder from models/diffusers, or "
                    "the built-in demo model.",
                ),
                rare(
                    io.Combo.Input, "dtype", options=DTYPES, default="auto",
                    tooltip="Type of the frozen weights. auto takes bf16 on a GPU that has it, fp32 on the "
                    "CPU. 8bit and 4bit are for folders of Stable Diffusion 3, Flux, FLUX.2, Qwen-Image, "
                    "Z-Image and Wan, on an NVIDIA GPU with bitsandbytes installed. The LoRA itself is "
                    "always trained in fp32.",
                ),
            ],
            outputs=[RlrModel.Output(display_name="model", tooltip="For RLR Train and RLR Sample.")],
            **opt(search_aliases=["reward", "lora training", "reinforcement", "fine-tune"]),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **inputs) -> str:
        """Another file under the same name is another model."""
        try:
            path = Path(host.model_path(checkpoint or ""))
        except UserError:
            return "missing"
        stamp = path.stat() if path.exists() else None
        return f"{path} {stamp.st_size} {stamp.st_mtime_ns}" if stamp else str(path)

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        """What cannot be trained is told when Run is pressed; None comes through a link."""
        if checkpoint is None:
            return True
        try:
            recognized(host.model_path(checkpoint))
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def run(cls, checkpoint: str, dtype: str) -> io.NodeOutput:
        path = host.model_path(checkpoint)
        if not recognized(path).quantizable and dtype in QUANTIZED:
            raise UserError(f"{checkpoint} cannot be held in {dtype}: set dtype to auto, bf16 or fp16.")
        name = checkpoint if path != "demo" else "demo"
        return io.NodeOutput(sockets.Model(path, name, None if dtype == "auto" else dtype))


def recognized(path: str) -> Any:
    """The family of a model, by its header. Raises UserError for one that the engine cannot load."""
    from rlr_core.common.weights import KINDS, kind
    from rlr_core.diffusion.models.loading import recognize

    try:
        return recognize(path)
    except UserError:
        if not Path(path).is_file() or (found := kind(Path(path))) not in ONLY_IN_COMFYUI:
            raise
        what = re.split("[,;]", KINDS[found])[0]
        raise UserError(
            f"{Path(path).name} is {what}: load it with ComfyUI's own loaders and use RLR From ComfyUI, "
            "which trains it as it is."
        ) from None
