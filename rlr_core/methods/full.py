"""Back-propagation through every step of the sampler."""

from __future__ import annotations

from rlr_core.gradients.plan import Plan
from rlr_core.methods.base import PlanInputs, WalkMethod


class Full(WalkMethod):
    """First order everywhere: DRaFT (Clark et al. 2023, arXiv 2309.17400), in the memory of one step."""

    name = "full"
    summary = "back-propagation through every sampler step (DRaFT)"
    when = "few sampler steps; with many its gradient can explode"
    needs_gradient = "needed"
    compares = False

    @staticmethod
    def plan(setting: PlanInputs) -> Plan:
        return Plan.everywhere(setting.T, setting.batch, 1.0)
