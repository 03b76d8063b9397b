"""The five linear layers that turn an embedding into a score, in LAION's predictor and in ImageReward."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from rlr_core.errors import UserError
from rlr_core.rewards.files import WeightFile, fill
from rlr_core.rewards.towers.clip import on_no_memory


def score_head(
    tensors: dict[str, Tensor], path: Path, needed: WeightFile, prefix: str = "layers."
) -> nn.Sequential:
    """The linear layers named `prefix`0, 2, 4, 6 and 7 (between them dropouts, idle here), in float32."""
    linear = [
        name for name in (f"{prefix}{index}" for index in (0, 2, 4, 6, 7)) if f"{name}.weight" in tensors
    ]
    sizes = [tensors[f"{name}.weight"].shape for name in linear]
    with on_no_memory():
        head = nn.Sequential(*(nn.Linear(wide, narrow) for narrow, wide in sizes))
    renamed = {
        f"{index}.{kind}": tensors[f"{name}.{kind}"].float()
        for index, name in enumerate(linear)
        for kind in ("weight", "bias")
        if f"{name}.{kind}" in tensors
    }
    fits = all(wide[0] == narrow[1] for wide, narrow in zip(sizes, sizes[1:], strict=False))
    if len(linear) != 5 or not fits or sizes[-1][0] != 1:
        raise UserError(f"{path} is not {needed.what}. {needed.advice()}")
    return fill(head, renamed, path, needed)
