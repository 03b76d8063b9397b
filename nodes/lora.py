"""RLR Save LoRA and RLR Apply LoRA."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from rlr_core.errors import UserError

from . import host, names
from .lora_patches import put_on
from .schema import CATEGORY, Node, opt, rare

STRENGTH = {"min": -20.0, "max": 20.0, "step": 0.05}


class SaveLora(Node):
    """A LORA_MODEL as a file that every LoRA loader finds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_SaveLoRA",
            display_name="RLR Save LoRA",
            category=CATEGORY,
            description="Writes a LoRA to output/loras, where ComfyUI's LoRA loaders find it (press R to "
            "reload their lists).",
            inputs=[
                io.LoraModel.Input("lora", tooltip="From RLR Train, or any node that gives a LORA_MODEL."),
                io.String.Input("name", default="my-lora", tooltip="Name of the file, without .safetensors; "
                                "folder/name makes a folder."),
                rare(io.Combo.Input, "if_exists", options=["keep both", "replace"], default="keep both",
                     tooltip="keep both: a LoRA with other content is saved beside it, as my-lora_2."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
            **opt(search_aliases=["save lora", "export lora"]),
        )  # fmt: skip

    @classmethod
    def run(cls, lora: Any, name: str, if_exists: str) -> io.NodeOutput:
        from rlr_core.lora.formats import write_tensors

        tensors = {key: value.detach().cpu().contiguous() for key, value in lora.items()}
        metadata = dict(getattr(lora, "metadata", {}))
        first = names.inside(host.loras_folder(), f"{name.removesuffix('.safetensors')}.safetensors")
        path, number = first, 2
        while if_exists == "keep both" and path.exists() and not _holds(path, tensors):
            path, number = first.with_stem(f"{first.stem}_{number}"), number + 1
        if not path.exists() or not _holds(path, tensors):
            write_tensors(tensors, path, metadata)
        host.log(f"LoRA saved to {path}")
        return io.NodeOutput(str(path), ui={"text": [str(path), *_where_it_acts(metadata)]})


def _where_it_acts(metadata: dict[str, str]) -> list[str]:
    """A sentence about a LoRA that was trained for a part of the steps."""
    if "end_percent" not in metadata:
        return []
    share = 100 * float(metadata["end_percent"])
    return [
        f"It is made for the first {share:.0f} % of the steps: RLR Apply LoRA uses it there. A stock loader "
        f"uses it on all of them, where it does less."
    ]


def _holds(path: Any, tensors: dict[str, Tensor]) -> bool:
    """Whether a file holds exactly these tensors."""
    from rlr_core.common.weights import read_tensors

    try:
        saved = read_tensors(path)
    except UserError:
        return False
    return saved.keys() == tensors.keys() and all(
        saved[key].dtype == value.dtype and torch.equal(saved[key], value) for key, value in tensors.items()
    )


class ApplyLora(Node):
    """A LORA_MODEL on a stock MODEL and CLIP, for all of the steps or a part of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_ApplyLoRA",
            display_name="RLR Apply LoRA",
            category=CATEGORY,
            description="Puts a trained LoRA on ComfyUI's own model, for KSampler and every other sampler. "
            "One that was trained for a part of the steps acts there only.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was trained on, from a stock "
                    "loader."),
                io.LoraModel.Input("lora", tooltip="From RLR Train, or any node that gives a LORA_MODEL."),
                io.Clip.Input("clip", optional=True, tooltip="Only for LoRAs that change the text encoder; "
                              "that part is left out if nothing is connected."),
                io.Float.Input("strength_model", default=1.0, **STRENGTH,
                               tooltip="Strength of the LoRA on the model; 1 as trained, 0 off."),
                io.Float.Input("strength_clip", default=1.0, **STRENGTH,
                               tooltip="Strength on the text encoder, for LoRAs that change it."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the steps after which the LoRA starts to act."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the steps after which it no longer acts."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with its part of the LoRA."),
            ],
        )  # fmt: skip

    @classmethod
    def run(
        cls, model: Any, lora: Any, clip: Any, strength_model: float, strength_clip: float,
        start_percent: float, end_percent: float,
    ) -> io.NodeOutput:  # fmt: skip
        if start_percent >= end_percent:
            raise UserError("end_percent must be above start_percent.")
        return io.NodeOutput(
            *put_on(model, clip, lora, strength_model, strength_clip, start_percent, end_percent)
        )
