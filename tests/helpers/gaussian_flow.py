"""A flow model whose data is Gaussian, so that all that its sampler does can be written down."""

from __future__ import annotations

import torch
from torch import Tensor

from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.kernels import flow_steps

MEAN, SPREAD = 0.3, 0.25
"""Of every number of a picture, independently."""


class GaussianFlow:
    """The exact velocity for pictures of that law; `sharpness` times it, for a field that is too steep."""

    guidance_kind = "none"
    name = "gaussian"
    device = torch.device("cpu")

    def __init__(self, sharpness: float = 1.0):
        self.sharpness = sharpness

    def denoise(self, x: Tensor, timestep: float, conditioning) -> Tensor:
        slope, offset = velocity(timestep)
        return self.sharpness * (slope * x + offset)


def velocity(s: float) -> tuple[float, float]:
    """Slope and offset in x of E[noise - picture | x_s = x]."""
    variance = (1 - s) ** 2 * SPREAD**2 + s**2
    slope = (s - (1 - s) * SPREAD**2) / variance
    return slope, -slope * (1 - s) * MEAN - MEAN


def gaussian_chain(steps: int, sharpness: float = 1.0, eta: float = 0.0) -> Chain:
    levels = [1 - index / steps for index in range(steps + 1)]
    return Chain(GaussianFlow(sharpness), flow_steps(levels[:-1], levels, eta=eta))


def nobody(count: int) -> Conditioning:
    """Conditioning that says nothing to `count` samples."""
    return Conditioning({}, torch.zeros(count, 1, dtype=torch.long))


def affine(chain: Chain) -> tuple[float, float]:
    """Slope and offset of the map from noise to picture that the steps make."""
    slope, offset = 1.0, 0.0
    for step in chain.steps:
        a, b = velocity(step.timestep)
        factor = step.a + step.b * chain.model.sharpness * a
        slope, offset = factor * slope, factor * offset + step.b * chain.model.sharpness * b
    return slope, offset
