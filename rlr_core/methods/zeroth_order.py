"""Perturbed weights and rewards alone."""

from __future__ import annotations

from rlr_core.config import MethodConfig
from rlr_core.gradients.plan import Plan
from rlr_core.methods.base import PlanInputs, WalkMethod


class ZerothOrder(WalkMethod):
    """Antithetic perturbation of the adapter at every step (SPSA, Spall 1992); no step is visited."""

    name = "zeroth_order"
    summary = "small random changes of the LoRA, in opposite pairs"
    when = "a sampler without noise and a reward without a gradient; noisier than all others"

    @classmethod
    def perturbs(cls, options: MethodConfig) -> bool:
        return True

    @staticmethod
    def plan(setting: PlanInputs) -> Plan:
        plan = Plan.empty(setting.T, setting.batch)
        plan.perturbed[1:] = True
        return plan

    def unreachable_steps(self) -> int:
        return 0
