"""Samples as methods that learn from pictures keep them: latents, prompts and scores, no trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.losses import CLEAN
from rlr_core.diffusion.models.base import NoiseLevel
from rlr_core.gradients.samples import Batch


@dataclass
class Samples:
    """An update's samples, of all processes."""

    batch: Batch
    latents: Tensor
    """[B, ...] finished, or states x_s on the way."""
    rewards: Tensor
    """[1, B] float64."""
    step: int


@dataclass
class Lesson:
    """What one optimizer step learns from: N rows."""

    latents: Tensor
    """[N, ...]."""
    conditioning: Conditioning
    """Of the N rows."""
    values: Tensor
    """[N] float32, what the method's loss makes of a row: its advantage, its weight, or its sign."""
    blocks: list[Tensor]
    """Places of the rows, in groups that share a noise level."""
    noise: Tensor
    """[N] integers: rows with the same number get the same noise."""
    unit: int = 1
    """How many rows one after the other in a block a loss sees together."""
    level: NoiseLevel = field(default=CLEAN)
    """How noisy the latents are already."""

    @property
    def size(self) -> int:
        return len(self.values)


def blocks_of(groups: Tensor) -> list[Tensor]:
    """Places [n] of each group, groups in the order of their first member. groups: [N] integers."""
    return [(groups == group).nonzero().flatten() for group in dict.fromkeys(groups.tolist())]


class SampleBuffer:
    """The last accepted samples, oldest first, at most `capacity` of them."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.latents: Tensor | None = None  # [N, ...]
        self.prompts = torch.zeros(0, dtype=torch.long)
        """[N] numbers of prompts."""
        self.values = torch.zeros(0)
        """[N] float32, as in `Lesson`."""

    def __len__(self) -> int:
        return len(self.prompts)

    def add(self, latents: Tensor, prompts: Tensor, values: Tensor) -> None:
        """Append samples [n, ...]; the oldest make room."""
        before = latents[:0] if self.latents is None else self.latents
        self.latents = torch.cat([before, latents])[-self.capacity :]
        self.prompts = torch.cat([self.prompts, prompts])[-self.capacity :]
        self.values = torch.cat([self.values, values])[-self.capacity :]

    def state_dict(self) -> dict[str, Tensor]:
        """All of it; nothing while it is empty."""
        if self.latents is None:
            return {}
        return {"latents": self.latents, "prompts": self.prompts, "values": self.values}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        self.latents = state["latents"].to(device) if "latents" in state else None
        if self.latents is not None:
            self.prompts, self.values = state["prompts"], state["values"]
