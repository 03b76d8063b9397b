"""Files of preferences: pairs of pictures with a prompt each, one preferred, one rejected.

One .safetensors file: `preferred` and `rejected`, uint8 [N, 3, H, W], and the N prompts as JSON in its
metadata. No Python object is ever unpickled from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlr_core.common.atomic import replacing
from rlr_core.errors import UserError, one_line


@dataclass
class Pairs:
    """N preferences."""

    preferred: Tensor
    """[N, 3, H, W] uint8."""
    rejected: Tensor
    """[N, 3, H, W] uint8."""
    prompts: list[str]


def save_pairs(path: str | Path, preferred: Tensor, rejected: Tensor, prompts: Sequence[str]) -> Path:
    """Write a file of preferences. preferred, rejected: pictures [N, 3, H, W], in [0, 1] or as 8-bit numbers.
    Raises UserError where shapes differ or the disk refuses."""
    from safetensors.torch import save_file

    if preferred.shape != rejected.shape or preferred.ndim != 4 or len(preferred) != len(prompts):
        raise UserError(
            f"Pairs need as many pictures of one size on both sides as prompts: there are "
            f"{list(preferred.shape)}, {list(rejected.shape)} and {len(prompts)} prompts."
        )
    pictures = {"preferred": preferred, "rejected": rejected}
    tensors = {name: _as_bytes(value.detach().cpu()) for name, value in pictures.items()}
    path = Path(path).expanduser()
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"prompts": json.dumps(list(prompts))})
    return path


def load_pairs(path: str | Path) -> Pairs:
    """Read a file of preferences. Raises UserError where it is none."""
    from safetensors import safe_open

    path = Path(path).expanduser()
    try:
        with safe_open(path, "pt") as file:
            prompts = json.loads((file.metadata() or {}).get("prompts", "[]"))
            preferred, rejected = file.get_tensor("preferred"), file.get_tensor("rejected")
    except Exception as error:  # safetensors raises what it likes for a damaged header
        raise UserError(
            f"{str(path)!r} is no file of preferences: {one_line(error)}; collect the pairs anew."
        ) from error
    fits = preferred.ndim == 4 and preferred.shape == rejected.shape and preferred.shape[1] == 3
    if not fits or preferred.dtype != torch.uint8 or rejected.dtype != torch.uint8 or not len(preferred):
        raise UserError(
            f"{str(path)!r} holds pictures of {list(preferred.shape)} and {list(rejected.shape)}; "
            f"preferences are two tensors of 8-bit pictures, [N, 3, H, W] each."
        )
    if (
        not isinstance(prompts, list)
        or len(prompts) != len(preferred)
        or not all(isinstance(prompt, str) for prompt in prompts)
    ):
        raise UserError(f"{str(path)!r} has {len(prompts)} prompts for {len(preferred)} pairs.")
    return Pairs(preferred, rejected, prompts)


def _as_bytes(pictures: Tensor) -> Tensor:
    if pictures.dtype == torch.uint8:
        return pictures
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
