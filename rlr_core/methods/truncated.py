"""Back-propagation through the last steps of the sampler."""

from __future__ import annotations

import numpy as np
import torch

from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.errors import UserError
from rlr_core.gradients.plan import Plan
from rlr_core.methods.base import PlanInputs, WalkMethod


class Truncated(WalkMethod):
    """First order at steps 1..K, K fixed (DRaFT-K, arXiv 2309.17400; VADER, arXiv 2407.08737) or drawn once
    per trajectory (AlignProp, arXiv 2310.03739). What is not visited is dropped, hence the bias."""

    name = "truncated"
    summary = "back-propagation through the last K sampler steps (DRaFT-K, AlignProp)"
    when = "texture and color; it hardly changes what is where"
    needs_gradient = "needed"
    compares = False
    bias = "earlier steps are dropped"

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        super().check(options, sampler, batch)
        if not 1 <= options.depth <= sampler.steps:
            raise UserError(
                f"method.depth is {options.depth}; with {sampler.steps} sampler steps it must be "
                f"1..{sampler.steps}."
            )

    @staticmethod
    def plan(setting: PlanInputs) -> Plan:
        plan = Plan.everywhere(setting.T, setting.batch, 1.0)
        depths = np.full(setting.batch, setting.options.depth)
        if setting.options.random_depth:
            depths = setting.rng.integers(1, setting.T + 1, size=setting.batch)
        plan.weight[setting.steps > torch.as_tensor(depths)] = 0.0
        return plan
