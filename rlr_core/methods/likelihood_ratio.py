"""The likelihood ratio at every step."""

from __future__ import annotations

from rlr_core.gradients.plan import Plan
from rlr_core.methods.base import PlanInputs, WalkMethod


class LikelihoodRatio(WalkMethod):
    """The score of every noise times the advantage: REINFORCE (Williams 1992) on the sampler as a policy."""

    name = "likelihood_ratio"
    summary = "makes the noise behind good pictures more likely (REINFORCE)"
    when = "big batches"
    needs_gradient = "used"
    needs_noise = True
    needs_baseline = True

    @staticmethod
    def plan(setting: PlanInputs) -> Plan:
        return Plan.everywhere(setting.T, setting.batch, 0.0).with_deterministic_steps(setting.sigmas)
