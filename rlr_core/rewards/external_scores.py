"""Numbers from outside as a reward: what a node's socket brings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward


class ExternalScores(Reward):
    """Numbers handed in from outside, in the order in which the pictures are scored."""

    name = "scores"
    takes = "any"
    differentiable = False

    def __init__(self, scores: Sequence[float] | Tensor = ()):
        """scores: numbers for the next pictures; `give` adds more."""
        self.waiting = torch.zeros(0)
        self.give(scores)

    def give(self, scores: Sequence[float] | Tensor) -> None:
        """Add scores [N] for the next N pictures."""
        new = torch.as_tensor(scores, dtype=torch.float32).detach().cpu().flatten()
        self.waiting = torch.cat([self.waiting, new])

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(self.waiting) < len(prompts):
            raise UserError(f"Reward 'scores' has {len(self.waiting)} numbers for {len(prompts)} pictures.")
        now, self.waiting = self.waiting[: len(prompts)], self.waiting[len(prompts) :]
        return now.to(images.device)
