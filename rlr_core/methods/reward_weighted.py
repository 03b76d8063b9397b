"""Reward-weighted regression: the denoising loss, with more weight on better pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from rlr_core.methods.regression import Row, Seen
from rlr_core.methods.sample_buffer import Lesson, Samples


class RewardWeighted(Row):
    """Peters and Schaal 2007; Lee et al. 2023, arXiv 2302.12192: weights softmax(A / temperature) over the
    batch, times its size. No weight is negative, so no picture is pushed away."""

    name = "reward_weighted"
    summary = "trains on all of the model's own pictures, better ones with more weight"
    when = "when no picture should be pushed away"

    def lesson(self, samples: Samples, inner: int) -> Lesson:
        weights = torch.softmax(self.standardized_advantages(samples) / self.options.temperature, 0)
        return self.whole_batch(samples, weights * len(weights))

    def coefficients(self, seen: Seen) -> tuple[Tensor, None]:
        return 2 * seen.values / seen.elements, None
