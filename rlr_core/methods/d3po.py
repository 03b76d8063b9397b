"""D3PO: preferences between two pictures, at every step of the chains that made them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rlr_core.common.pending import Pending
from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.errors import UserError
from rlr_core.gradients.backward import Signals, backward
from rlr_core.gradients.plan import Plan
from rlr_core.gradients.samples import Batch, GradientEstimate, Rollout, Rollouts
from rlr_core.methods.base import PlanInputs, WalkMethod
from rlr_core.methods.dpo import best_and_worst, check_pairs


class D3po(WalkMethod):
    """Yang et al. 2023, arXiv 2311.13231. With h_t = log p - log p_base of the step that was drawn,

        loss = -sum over noisy steps t of log sigmoid(beta (h_t(preferred) - h_t(rejected))) ,

    so each step is a likelihood ratio with the advantage beta sigmoid(-beta margin_t), minus for the rejected
    one. Pairs are the best and the worst picture of each prompt."""

    name = "d3po"
    summary = "the same preference at every sampler step (D3PO)"
    when = "to compare with D3PO"
    needs_noise = True

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        super().check(options, sampler, batch)
        if options.kl_weight > 0:
            raise UserError(
                f"method.kl_weight is {options.kl_weight}, and d3po is held near the base model by "
                f"method.d3po_beta: set method.kl_weight to 0."
            )

    @staticmethod
    def plan(setting: PlanInputs) -> Plan:
        return Plan.empty(setting.T, setting.batch)

    def collect(self, batch: Batch, step: int) -> Rollouts | Pending:
        check_pairs(batch.groups, self.name)
        return super().collect(batch, step)

    def gradients(self, samples: Rollouts) -> Iterator[GradientEstimate]:
        estimator, problem = self.estimator, self.problem
        good, bad = best_and_worst(samples.rewards[0], samples.batch.groups).T
        T, size = problem.chain.T, samples.batch.size
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[good] = chosen[bad] = True
        ratios = torch.zeros(T + 1, size)
        for part in samples.parts:
            members = chosen[part.index].nonzero().flatten()
            if len(members):
                ratios[:, part.index[members]] = self._log_ratios(part, members)
        ratios = estimator.world.sum(ratios)
        beta = self.options.d3po_beta
        pull = beta * torch.sigmoid(-beta * (ratios[:, good] - ratios[:, bad]))
        pull[torch.tensor([False] + [sigma > 0 for sigma in estimator.sigmas]).logical_not()] = 0
        weight, sign = torch.zeros(T + 1, size), torch.zeros(size)
        weight[:, good], weight[:, bad] = pull, pull
        sign[good], sign[bad] = 1.0, -1.0
        totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in problem.parameters]
        done, total = 0, sum(len(part.index) for part in samples.parts)
        for part in samples.parts:
            problem.on_phase("backward", done, total)
            done += len(part.index)
            plan = part.plan
            plan.weight = weight[:, part.index]
            if plan.visited.any():
                signals = Signals(sign[part.index].to(part.trajectory.final.device))
                result = backward(problem.chain, part.trajectory, problem.parameters, plan, signals)
                torch._foreach_add_(totals, result.gradient, alpha=1 / len(good))
        estimator.world.sum_all(totals)
        yield GradientEstimate(totals, {"kl": estimator.measure_kl(samples)})

    @torch.no_grad()
    def _log_ratios(self, part: Rollout, members: Tensor) -> Tensor:
        """log p - log p_base [T + 1, n] of the steps of some of a part's trajectories, 0 without noise."""
        chain, trajectory = self.problem.chain, part.trajectory
        conditioning = trajectory.conditioning.select(members)
        ratios = torch.zeros(chain.T + 1, len(members))
        places = members.to(trajectory.final.device)
        for t, noises in trajectory.noises.items():
            sigma, z = chain.sigma(t), noises[places]
            with self.problem.base():
                base = chain.mean(trajectory.latents[t][places], t, conditioning)
            of_base = (trajectory.latents[t - 1][places] - base) / sigma
            # (|of_base|^2 - |z|^2) / 2, as a product of a small difference
            ratios[t] = (0.5 * ((of_base - z) * (of_base + z)).flatten(1).sum(1)).cpu()
        return ratios
