"""The methods: a table of which steps are visited, how cotangents are mixed, and what is perturbed.

Each row's plan is a few lines; the walk and the zeroth order below it are shared by all (math.md section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.errors import UserError
from rlr_core.gradients.plan import Plan, draw_depths, draw_starts, survival
from rlr_core.gradients.statistics import Running


@dataclass
class Setting:
    """What a plan is made from."""

    sigmas: list[float]
    """sigma_t for t = 1..T."""
    batch: int
    """Trajectories in the update, over all devices."""
    groups: np.ndarray
    """[batch] which perturbation each trajectory belongs to."""
    options: MethodConfig
    """The method's settings."""
    running: Running
    """What earlier updates measured."""
    rng: np.random.Generator
    """The update's own random numbers, equal on every device."""
    pathwise: bool = True
    """Whether there is a gradient to start from: a differentiable reward or a surrogate."""

    @property
    def T(self) -> int:
        return len(self.sigmas)


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    summary: str
    plan: Callable[[Setting], Plan]
    pathwise: str = "no"
    """Whether it needs a differentiable reward: 'needed', 'used' when there is one, or 'no'."""
    noise: bool = False
    """Whether it cannot do without noisy steps."""
    baseline: bool = False
    """Whether rewards need a baseline."""
    bias: str = "none"
    """'none' or where the bias comes from."""
    calibrates: bool = False
    """Whether the first update is preceded by a walk that only measures."""
    perturbs: Callable[[MethodConfig], bool] = field(default=lambda options: False)
    """Whether rollouts come in antithetic twins."""

    def check(self, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        """Raise UserError where the settings cannot work with this sampler."""
        T = sampler.steps
        if self.name == "zeroth_order" and options.kl_weight > 0:
            raise UserError(
                "Method 'zeroth_order' only sees rewards, and method.kl_weight cannot act: set it to 0, or "
                "choose another method."
            )
        if self.noise and sampler.eta == 0 and sampler.last_step_noise == 0:
            raise UserError(
                f"Method {self.name!r} learns from the sampler's noise and sampler.eta is 0: set sampler.eta "
                f"above 0 (1 is DDPM), or choose full, truncated or zeroth_order."
            )
        if self.name == "rlr":
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
        if self.name == "truncated" and not 1 <= options.depth <= T:
            raise UserError(f"method.depth is {options.depth}; with {T} sampler steps it must be 1..{T}.")
        if self.baseline and batch < 2 and options.advantage != "running_mean":
            raise UserError(
                "A batch of 1 has no baseline: raise batch, or set method.advantage=running_mean."
            )


def full(s: Setting) -> Plan:
    """Back-propagation through every step (DRaFT)."""
    return Plan.everywhere(s.T, s.batch, 1.0)


def truncated(s: Setting) -> Plan:
    """Back-propagation through the last K steps, K fixed or drawn once per trajectory."""
    plan = Plan.everywhere(s.T, s.batch, 1.0)
    depths = np.full(s.batch, s.options.depth)
    if s.options.random_depth:
        depths = s.rng.integers(1, s.T + 1, size=s.batch)
    plan.weight[_steps(s) > torch.as_tensor(depths)] = 0.0
    return plan


def likelihood_ratio(s: Setting) -> Plan:
    """The score of every noise times the advantage (REINFORCE, DDPO)."""
    return Plan.everywhere(s.T, s.batch, 0.0).without_hidden_noise(s.sigmas)


def zeroth_order(s: Setting) -> Plan:
    """No step is visited; the adapter is perturbed at all of them."""
    plan = Plan.empty(s.T, s.batch)
    plan.perturbed[1:] = True
    return plan


def rlr(s: Setting) -> Plan:
    """First order at step 1, a half-order window at j..j+h-1, and the remainder as the options say."""
    h, remainder = s.options.window, s.options.remainder
    steps = _steps(s)
    noisy = [t for t in range(2, s.T - h + 2) if s.sigmas[t - 1] > 0]
    if not noisy:
        raise UserError("No step from 2 on has the noise that a window starts from: raise sampler.eta.")
    factor = 1.0
    if remainder == "importance":
        tiles = np.asarray(_tiles(s, h))
        start, end = torch.as_tensor(tiles[s.rng.integers(len(tiles), size=s.batch)]).T
        factor = float(len(tiles))
    else:
        bounds = s.options.start_range
        starts = draw_starts(
            s.options.start, noisy, s.batch, s.rng, s.running.norms(), tuple(bounds) if bounds else None
        )
        if remainder == "zeroth_order":  # a perturbation's steps are those of all its trajectories
            starts = starts[s.groups]
        start, end = torch.as_tensor(starts), torch.as_tensor(starts) + h
    window = (steps >= start) & (steps < end)
    rest = (steps >= 2) & ~window

    plan = Plan.empty(s.T, s.batch)
    plan.weight[1] = 1.0
    if remainder == "importance":  # silent steps before the first tile go on from step 1
        plan.weight[2 : int(tiles[0, 0])] = 1.0
    plan.weight[window] = factor
    plan.lam[1] = 1.0 if s.pathwise or s.sigmas[0] <= 0 else 0.0
    plan.lam[window & (steps > start)] = 1.0
    if remainder == "zeroth_order":
        plan.perturbed = rest
    elif remainder == "likelihood_ratio":
        plan.weight[rest] = 1.0
    return plan.without_hidden_noise(s.sigmas)


def adaptive(s: Setting) -> Plan:
    """Both cotangents at every step, mixed by inverse variance; random depths keep to the budget."""
    lam = s.running.lam() if s.pathwise else 0.0
    plan = Plan.everywhere(s.T, s.batch, lam).without_hidden_noise(s.sigmas)
    survive = survival(s.running.norms(), max(1.0, s.options.budget * s.T))
    depths = torch.as_tensor(draw_depths(survive, s.batch, s.rng))
    plan.weight = torch.as_tensor(1 / survive).float()[:, None] * (_steps(s) <= depths)
    plan.weight[0] = 0.0
    return plan


def _steps(s: Setting) -> torch.Tensor:
    """t as a column [T + 1, 1]."""
    return torch.arange(s.T + 1)[:, None]


def _tiles(s: Setting, h: int) -> list[tuple[int, int]]:
    """Windows (first step, one past the last) that tile 2..T from the first noisy step on.

    Each starts at a step with noise, so that it can be seeded there, and has h steps or a few more.
    """
    tiles, start = [], next(t for t in range(2, s.T + 1) if s.sigmas[t - 1] > 0)
    while start is not None:
        after = next((t for t in range(start + h, s.T + 1) if s.sigmas[t - 1] > 0), None)
        tiles.append((start, after or s.T + 1))
        start = after
    return tiles


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("adaptive", "both estimators at every step, mixed by inverse variance, random depth (ours)",
               adaptive, pathwise="used", baseline=True, calibrates=True),
        Method("rlr", "the paper: first order, a half-order window, the rest by perturbation",
               rlr, pathwise="used", noise=True, baseline=True,
               perturbs=lambda options: options.remainder == "zeroth_order"),
        Method("full", "back-propagation through every step (DRaFT)", full, pathwise="needed"),
        Method("truncated", "back-propagation through the last K steps (DRaFT-K, AlignProp)",
               truncated, pathwise="needed", bias="earlier steps are dropped"),
        Method("likelihood_ratio", "the score of every noise times the advantage (REINFORCE)",
               likelihood_ratio, pathwise="used", noise=True, baseline=True),
        Method("ddpo", "likelihood ratio with PPO's clip and several optimiser steps per rollout",
               likelihood_ratio, noise=True, baseline=True, bias="PPO's clip"),
        Method("zeroth_order", "antithetic perturbation of the adapter, rewards only",
               zeroth_order, perturbs=lambda options: True),
    )
}  # fmt: skip
"""Method name -> row. A new method is one plan and one line here."""
