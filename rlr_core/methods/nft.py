"""DiffusionNFT: good pictures pull the network, bad ones push it, both around the policy that sampled."""

from __future__ import annotations

from torch import Tensor

from rlr_core.methods.regression import Row, Seen
from rlr_core.methods.sample_buffer import Lesson, Samples

LARGEST_ADVANTAGE = 5.0
"""Standard deviations of the reward at which a picture is wholly good or wholly bad."""


class Nft(Row):
    """Zheng et al. 2025, arXiv 2509.16117. With r in [0, 1] how good a picture is, and two policies implied
    by the present one, v+ = (1 - beta) v_old + beta v and v- = (1 + beta) v_old - beta v,

        loss = (r |x_0(v+) - x_0|^2 / m+  +  (1 - r) |x_0(v-) - x_0|^2 / m-) / beta ,

    m+ and m- the (constant) mean absolute errors. Without them it is a regression of v onto
    v_old + ((2 r - 1) / beta) (target - v_old)."""

    name = "nft"
    summary = "draws the model to its good pictures and away from its bad ones (DiffusionNFT)"
    when = "rewards without a gradient"
    uses_old = True

    def lesson(self, samples: Samples, inner: int) -> Lesson:
        share = 0.5 + self.standardized_advantages(samples) / (2 * LARGEST_ADVANTAGE)
        return self.whole_batch(samples, share.clamp(0, 1))

    def coefficients(self, seen: Seen) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        beta = self.options.nft_beta
        step = beta * (seen.output - seen.old)
        to_x0 = seen.slopes.x0 * seen.slopes.velocity
        positive = _mean_error(to_x0 * (seen.old + step - seen.target))
        negative = _mean_error(to_x0 * (seen.old - step - seen.target))
        good, bad = seen.values / positive, (1 - seen.values) / negative
        scale = 2 * seen.slopes.x0**2 / seen.elements
        lam = scale * (beta * (good + bad) - (good - bad))
        return scale * (good - bad), (lam, seen.old)


def _mean_error(difference: Tensor) -> Tensor:
    """Mean absolute error of the picture, [n], away from 0."""
    return difference.abs().flatten(1).mean(1).clamp(min=1e-5)
