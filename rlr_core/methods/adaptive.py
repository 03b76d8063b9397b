"""Adaptive RLR: both ways of filling a cotangent at every step, mixed by inverse variance, random depths."""

from __future__ import annotations

import torch
from torch import Tensor

from rlr_core.config import MethodConfig
from rlr_core.gradients.plan import Plan, draw_depths, survival
from rlr_core.methods.base import PlanInputs, WalkMethod


class Adaptive(WalkMethod):
    """Mixing as in total propagation (PIPPS, Parmas et al. 2018, arXiv 1902.01722) with variances of earlier
    updates only, which keeps it unbiased, and Russian roulette over the depth (math.md section 3)."""

    name = "adaptive"
    summary = (
        "back-propagation and the sampler's noise at every step, each weighted by how reliable it has been"
    )
    when = (
        "rewards that move every picture the same way (color, CLIP); method.budget trades precision for speed"
    )
    needs_gradient = "used"
    compares = False
    needs_baseline = True
    calibrates = True

    @classmethod
    def reads_norms(cls, options: MethodConfig) -> bool:
        return options.budget < 1

    @staticmethod
    def plan(setting: PlanInputs) -> Plan:
        s = setting
        lam = s.running.lam() if s.pathwise else 0.0
        plan = Plan.everywhere(s.T, s.batch, lam).with_deterministic_steps(s.sigmas)
        survive = survival(s.running.norms(), max(1.0, s.options.budget * s.T))
        depths = torch.as_tensor(draw_depths(survive, s.batch, s.rng))
        plan.weight = torch.as_tensor(1 / survive).float()[:, None] * (s.steps <= depths)
        plan.weight[0] = 0.0
        return plan

    def metrics(self) -> dict[str, float]:
        lam: Tensor = self.estimator.running.lam()[1:] if self.estimator.pathwise else torch.zeros(1)
        return {"lambda/mean": float(lam.mean())}
