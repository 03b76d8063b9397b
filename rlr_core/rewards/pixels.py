"""Rewards without weights that read one property off a picture's pixels. All are differentiable.

A negative weight in `combine` reverses any of them: darkness, blur, roughness.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.towers.preprocess import luminance

CHANNELS = ("red", "green", "blue")
TINY = 1e-8  # keeps the slope of a square root finite where a picture is flat


class MeanColor(Reward):
    """Mean of one channel minus the mean of the other two, in [-1, 1]: white is no redder than black."""

    name = "mean_color"
    range = (-1.0, 1.0)

    def __init__(self, channel: str = "red"):
        """channel: red, green or blue."""
        if channel not in CHANNELS:
            raise UserError(
                f"Reward 'mean_color': channel must be one of {', '.join(CHANNELS)}, not {channel!r}."
            )
        self.channel = CHANNELS.index(channel)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        means = images.float().mean((-2, -1))  # [B, 3]
        chosen = means[:, self.channel]
        return chosen - (means.sum(1) - chosen) / 2


class Brightness(Reward):
    """Mean luma, in [0, 1]."""

    name = "brightness"
    range = (0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return luminance(images).mean((-2, -1))


class Saturation(Reward):
    """Mean over pixels of the largest channel minus the smallest (HSV's chroma), in [0, 1]."""

    name = "saturation"
    range = (0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        images = images.float()
        return (images.amax(1) - images.amin(1)).mean((-2, -1))  # torch 2.11 cannot differentiate aminmax


class Contrast(Reward):
    """Standard deviation of the luma over the picture (RMS contrast), in [0, 0.5]."""

    name = "contrast"
    range = (0.0, 0.5)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (luminance(images).var((-2, -1), correction=0) + TINY).sqrt()


class Sharpness(Reward):
    """Root mean square of the luma's Laplacian (four neighbors), in [0, 4]; 0 where flat or a ramp."""

    name = "sharpness"
    range = (0.0, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=images.device)
        edges = F.conv2d(luminance(images)[:, None], kernel[None, None])
        return (edges.square().mean((1, 2, 3)) + TINY).sqrt()


class TotalVariation(Reward):
    """Minus the mean absolute difference of neighbors, right plus below, in [-2, 0]; 0 where flat."""

    name = "total_variation"
    range = (-0.5, 0.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        images = images.float()
        across, down = images.diff(dim=-1), images.diff(dim=-2)
        return -(across.abs().mean((1, 2, 3)) + down.abs().mean((1, 2, 3)))
