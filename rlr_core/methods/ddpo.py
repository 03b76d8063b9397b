"""DDPO: the likelihood ratio with PPO's clip, several optimizer steps on the same rollouts."""

from __future__ import annotations

from collections.abc import Iterator

from rlr_core.errors import UserError
from rlr_core.gradients.samples import GradientEstimate, Rollouts
from rlr_core.methods.likelihood_ratio import LikelihoodRatio

LARGEST_RATIO_ERROR = 1e-2
"""How far an importance ratio of unchanged weights may be from 1."""


class Ddpo(LikelihoodRatio):
    """DDPO-IS (Black et al. 2023, arXiv 2305.13301): ratios with PPO's clip (math.md section 6)."""

    name = "ddpo"
    summary = "likelihood_ratio with PPO's clipping and several optimizer steps a batch (DDPO)"
    when = "to compare with DDPO"
    needs_gradient = "no"
    bias = "PPO's clip"

    def gradients(self, samples: Rollouts) -> Iterator[GradientEstimate]:
        first = self.estimator.gradient(samples, clip_range=self.options.clip_range)
        error = first.metrics["importance_ratio/error"]
        if error > LARGEST_RATIO_ERROR:
            raise UserError(
                f"The importance ratio of unchanged weights is off by {error:.2g}: the denoiser is not "
                f"repeatable in this precision; use dtype=fp32, or another method."
            )
        self.add_kl(first, samples)
        yield first
        for _ in range(self.options.inner_epochs - 1):
            yield self.estimator.gradient(samples, clip_range=self.options.clip_range, replay=True)
