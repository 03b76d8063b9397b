"""Advantage-weighted matching: the denoising loss of every picture, times its advantage."""

from __future__ import annotations

import torch
from torch import Tensor

from rlr_core.methods.regression import Row, Seen
from rlr_core.methods.sample_buffer import Lesson, Samples


class Awm(Row):
    """Xue et al. 2025, arXiv 2509.25050: the policy gradient with minus the denoising loss l in the place of
    log p, and PPO's clip on rho = exp(l_old - l):  maximize min(rho A, clip(rho) A)."""

    name = "awm"
    summary = "the denoising loss of each picture, weighted by how much better it is than the others (AWM)"
    when = (
        "rewards without a gradient, where the LoRA has to act at every step; in long runs it can fall apart"
    )
    uses_old = True

    def lesson(self, samples: Samples, inner: int) -> Lesson:
        return self.whole_batch(samples, self.standardized_advantages(samples))

    def coefficients(self, seen: Seen) -> tuple[Tensor, None]:
        advantage, clip = seen.values, self.options.clip_range
        rho = (seen.loss(seen.old) - seen.loss(seen.output)).clamp(-20, 20).exp()
        cut = ((advantage > 0) & (rho > 1 + clip)) | ((advantage < 0) & (rho < 1 - clip))
        kappa = 2 * advantage * rho / seen.elements
        return torch.where(cut, torch.zeros_like(kappa), kappa), None
