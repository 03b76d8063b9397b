"""How far rollouts are from what the base model would have drawn: KL divergences of Gaussian steps.

Both share sigma, so that of a step is |mu - mu_base|^2 / (2 sigma^2). What was drawn tells the mean that it
was drawn around, so only the base model is asked (math.md section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rlr_core.diffusion.chain import ChainLike
from rlr_core.diffusion.rollout import Trajectory
from rlr_core.gradients.samples import Rollouts

Base = Callable[[], AbstractContextManager]
"""Gives a context in which the chain is the base model's."""


def least_sigma(sigmas: Sequence[float]) -> float:
    """Stand-in for sigma at steps without noise: the smallest positive one, or 1."""
    return min((sigma for sigma in sigmas if sigma > 0), default=1.0)


@torch.no_grad()
def kl_to_base(chain: ChainLike, base: Base, trajectory: Trajectory, steps: Sequence[int]) -> Tensor:
    """Sum [B] over some steps of each trajectory, at the weights that drew them; float64."""
    stand_in = least_sigma([chain.sigma(t) for t in range(1, chain.T + 1)])
    total = torch.zeros(len(trajectory.final), dtype=torch.float64)
    for t in steps:
        sigma, mean = chain.sigma(t), trajectory.latents[t - 1]
        if sigma > 0:
            mean = mean - sigma * trajectory.noises[t]
        with base():
            of_base = chain.mean(trajectory.latents[t], t, trajectory.conditioning)
        squares = (mean - of_base).square().flatten(1).sum(1)
        total += (squares / (2 * (sigma or stand_in) ** 2)).double().cpu()
    return total


def total_kl(chain: ChainLike, base: Base, rollouts: Rollouts, samples: int = 2) -> Tensor:
    """Sum over the noisy steps of the first few of this process's trajectories, and how many they are [2].

    Perturbed steps (zeroth order) are what the first of the twins drew.
    """
    found = torch.zeros(2, dtype=torch.float64)
    for part in rollouts.parts:
        index = torch.arange(min(samples - int(found[1]), len(part.index)))
        if part.twin == 0 and len(index):
            trajectory = part.trajectory.select(index)
            found[0] += kl_to_base(chain, base, trajectory, list(trajectory.noises)).sum()
            found[1] += len(index)
    return found
