"""Advantages: rewards less a baseline (math.md section 4).

Rewards come as [S, B]: B trajectories, S = 2 when each has an antithetic twin. The baseline of a trajectory
never contains its twin, which shares its noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Advantages(NamedTuple):
    """A = scale * (R - baseline)."""

    values: Tensor
    """[S, B] float64."""
    scale: Tensor
    """[S, B] factor on the reward itself, which its pathwise gradient must carry as well."""


def advantages(rewards: Tensor, groups: Tensor, kind: str, running_mean: float | None = None) -> Advantages:
    """Advantages of rewards [S, B], float64. groups: [B] integers, the same for samples of one prompt.

    kind: leave_one_out, the mean over the other pairs of the same prompt (of the batch, for a prompt that
    stands alone); z_score, less the group's mean and divided by its deviation, which changes the objective;
    running_mean, the mean of earlier updates.
    """
    ones = torch.ones_like(rewards)
    if kind == "running_mean" and running_mean is not None:
        return Advantages(rewards - running_mean, ones)
    same = (groups[:, None] == groups[None, :]).to(rewards)
    if kind == "z_score":
        count = same.sum(1) * rewards.shape[0]
        mean = same @ rewards.sum(0) / count
        variance = same @ rewards.square().sum(0) / count - mean.square()
        scale = ones / (variance.clamp(min=0).sqrt() + 1e-4)
        return Advantages((rewards - mean) * scale, scale)
    if rewards.shape[1] == 1:
        return Advantages(rewards.clone(), ones)
    others = same - torch.eye(len(groups), dtype=rewards.dtype)
    alone = others.sum(1) == 0
    others[alone] = 1 - torch.eye(len(groups), dtype=rewards.dtype)[alone]
    baseline = others @ rewards.sum(0) / (others.sum(1) * rewards.shape[0])
    return Advantages(rewards - baseline, ones)
