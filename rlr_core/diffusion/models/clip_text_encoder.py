"""A CLIP text encoder from named tensors, under the names of any transformers release."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NESTED = "text_model."
"""The prefix of every weight in transformers before 5.6, in memory and in new files; since, there is none."""


def clip_text_encoder(
    tensors: dict[str, Tensor], config: Any, dtype: torch.dtype, projection: bool = False
) -> tuple[nn.Module, list[str], list[str]]:
    """(CLIPTextModel, missing, unknown): the network of a CLIPTextConfig with `tensors`, nested or flat.

    projection: the network is a CLIPTextModelWithProjection. missing: its weights that `tensors` lacks or has
    in another shape, left on the meta device; unknown: the tensors that are none of its weights. Both by the
    names without the prefix.
    """
    from accelerate import init_empty_weights
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with init_empty_weights():
        module = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    expected = {name.removeprefix(NESTED): name for name, _ in module.named_parameters()}
    shapes = {name.removeprefix(NESTED): weight.shape for name, weight in module.named_parameters()}
    flat = {name.removeprefix(NESTED): tensor for name, tensor in tensors.items()}
    fitting = {name: flat[name].to(dtype) for name, shape in shapes.items() if _has(flat, name, shape)}
    module.load_state_dict(
        {expected[name]: tensor for name, tensor in fitting.items()}, strict=False, assign=True
    )
    missing = [name for name in expected if name not in fitting]
    ignored = ("position_ids", "logit_scale") if projection else ("position_ids",)
    unknown = [name for name in flat if name not in expected and not name.endswith(ignored)]
    return module, missing, unknown


def _has(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> bool:
    return name in tensors and tensors[name].shape == shape
