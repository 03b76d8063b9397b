"""RLR, the recursive likelihood ratio optimizer of the paper (arXiv 2502.00639)."""

from __future__ import annotations

import numpy as np
import torch

from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.errors import UserError
from rlr_core.gradients.plan import Plan, draw_starts
from rlr_core.methods.base import PlanInputs, WalkMethod


class Rlr(WalkMethod):
    """First order at step 1, a half-order window at j..j+h-1, and a remainder (math.md section 2)."""

    name = "rlr"
    summary = (
        "back-propagation at the last step, a window started by its noise, perturbed weights elsewhere (RLR)"
    )
    when = "to compare with the paper"
    needs_gradient = "used"
    needs_noise = True
    needs_baseline = True

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        super().check(options, sampler, batch)
        T = sampler.steps
        if not 1 <= options.window <= T - 1:
            raise UserError(
                f"method.window is {options.window}; with {T} sampler steps it must be 1..{T - 1}."
            )
        if options.start == "range":
            bounds, last = options.start_range, T - options.window + 1
            if not bounds or len(bounds) != 2 or not 2 <= bounds[0] <= bounds[1] <= last:
                raise UserError(
                    f"method.start_range is {bounds}; it must be two steps a <= b within 2..{last} "
                    f"(step 1 makes the picture)."
                )

    @classmethod
    def perturbs(cls, options: MethodConfig) -> bool:
        return options.remainder == "zeroth_order"

    @classmethod
    def reads_norms(cls, options: MethodConfig) -> bool:
        return options.start == "gradient_norm"

    @staticmethod
    def plan(setting: PlanInputs) -> Plan:
        s, h, remainder = setting, setting.options.window, setting.options.remainder
        steps = s.steps
        noisy = [t for t in range(2, s.T - h + 2) if s.sigmas[t - 1] > 0]
        if not noisy:
            raise UserError("No step from 2 on has the noise that a window starts from: raise sampler.eta.")
        factor = 1.0
        first_tile = 2
        if remainder == "importance":
            tiles = np.asarray(_tiles(s, h))
            start, end = torch.as_tensor(tiles[s.rng.integers(len(tiles), size=s.batch)]).T
            factor, first_tile = float(len(tiles)), int(tiles[0, 0])
        else:
            bounds = (s.options.start_range[0], s.options.start_range[1]) if s.options.start_range else None
            starts = draw_starts(s.options.start, noisy, s.batch, s.rng, s.running.norms(), bounds)
            if remainder == "zeroth_order":  # a perturbation's steps are those of all its trajectories
                starts = starts[s.groups]
            start, end = torch.as_tensor(starts), torch.as_tensor(starts) + h
        window = (steps >= start) & (steps < end)
        rest = (steps >= 2) & ~window

        plan = Plan.empty(s.T, s.batch)
        plan.weight[1] = 1.0
        plan.weight[2:first_tile] = 1.0  # deterministic steps before the first tile go on from step 1
        plan.weight[window] = factor
        plan.lam[1] = 1.0 if s.pathwise or s.sigmas[0] <= 0 else 0.0
        plan.lam[window & (steps > start)] = 1.0
        if remainder == "zeroth_order":
            plan.perturbed = rest
        elif remainder == "likelihood_ratio":
            plan.weight[rest] = 1.0
        return plan.with_deterministic_steps(s.sigmas)


def _tiles(setting: PlanInputs, h: int) -> list[tuple[int, int]]:
    """Windows (first step, one past the last) that tile 2..T from the first noisy step on.

    Each starts at a step with noise, so that it can be seeded there, and has h steps or a few more.
    """
    sigmas, T = setting.sigmas, setting.T
    tiles, start = [], next(t for t in range(2, T + 1) if sigmas[t - 1] > 0)
    while start is not None:
        after = next((t for t in range(start + h, T + 1) if sigmas[t - 1] > 0), None)
        tiles.append((start, after or T + 1))
        start = after
    return tiles
