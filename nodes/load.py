"""RLR Load Checkpoint."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from . import host, sockets
from .schema import CATEGORY, Node, RlrModel, opt, rare

DTYPES = ["auto", "bf16", "fp16", "fp32"]


class LoadCheckpoint(Node):
    """Says which model is meant, after a look at its header; the weights are read when they are needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_LoadCheckpoint",
            display_name="RLR Load Checkpoint",
            category=CATEGORY,
            description="The model to be trained: a Stable Diffusion 1.x or 2.x checkpoint, a diffusers "
            "folder, or the small built-in one. Nothing is downloaded.",
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=host.model_names(),
                    tooltip="A .safetensors file from models/checkpoints, a folder from models/diffusers, or "
                    "the built-in demo model.",
                ),
                rare(
                    io.Combo.Input, "dtype", options=DTYPES, default="auto",
                    tooltip="Type of the frozen weights. auto takes bf16 on a GPU that has it, fp32 on the "
                    "CPU. The LoRA itself is always trained in fp32.",
                ),
            ],
            outputs=[RlrModel.Output(display_name="model", tooltip="For RLR Train and RLR Sample.")],
            **opt(search_aliases=["reward", "lora training", "reinforcement", "fine-tune"]),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None = None, **inputs) -> str:
        """Another file under the same name is another model."""
        from rlr_core.errors import UserError

        try:
            path = Path(host.model_path(checkpoint or ""))
        except UserError:
            return "missing"
        stamp = path.stat() if path.exists() else None
        return f"{path} {stamp.st_size} {stamp.st_mtime_ns}" if stamp else str(path)

    @classmethod
    def run(cls, checkpoint: str, dtype: str) -> io.NodeOutput:
        from rlr_core.diffusion.models.loading import recognize

        path = host.model_path(checkpoint)
        recognize(path)
        name = checkpoint if path != "demo" else "demo"
        return io.NodeOutput(sockets.Model(path, name, None if dtype == "auto" else dtype))
