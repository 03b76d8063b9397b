"""The forward process: add noise to a sample, and what a network should say of the result. Pure functions.

x_t = alpha * x_0 + sigma * noise. A sample may also be a state x_s, taken from the sampler at a level s that
still has noise; the target then is the one whose regression gives the score of what x_s was drawn from:

    x_t = (alpha_t / alpha_s) x_s + sigma_{t|s} z
    sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2
    noise* = z sigma_t / sigma_{t|s} ,   x_0* = (x_t - sigma_t noise*) / alpha_t
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rlr_core.diffusion.models.base import NoiseLevel

CLEAN = NoiseLevel(0.0, 1.0, 0.0)
"""The level of a finished sample."""
LARGEST_SLOPE = 7.0
"""Of the velocity in the output of an eps or x_0 model; the weight of its error is the square."""


class Noised(NamedTuple):
    """A sample with noise on it, and what a perfect guess of its parts would be on average."""

    latents: Tensor
    """x_t [B, ...]."""
    x0: Tensor
    """The picture in it; x_0 itself where the sample is finished."""
    noise: Tensor
    """The noise in it, of unit variance where the sample is finished."""
    weight: float
    """sigma_{t|s}^2 / sigma_t^2 keeps the target's variance bounded as t comes near s; 1 if finished."""


def add_noise(samples: Tensor, start: NoiseLevel, level: NoiseLevel, z: Tensor) -> Noised:
    """Take samples [B, ...] from level `start` to a noisier one. z: standard normal, same shape.

    Raises ValueError where `level` is not noisier than `start`.
    """
    ratio = level.alpha / start.alpha
    variance = level.sigma**2 - (ratio * start.sigma) ** 2
    if variance <= 0:
        raise ValueError(f"Level {level} is not noisier than {start}.")
    added = math.sqrt(variance)
    x0 = samples / start.alpha
    if start.sigma > 0:  # written so that alpha_t = 0, pure noise, is no division by zero
        x0 = x0 - z * (ratio * start.sigma**2 / (start.alpha * added))
    return Noised(ratio * samples + added * z, x0, z * (level.sigma / added), variance / level.sigma**2)


def target(prediction: str, noised: Noised, level: NoiseLevel) -> Tensor:
    """What a network with this kind of output should say of x_t. Raises ValueError for an unknown kind."""
    if prediction == "epsilon":
        return noised.noise
    if prediction == "v_prediction":
        return level.alpha * noised.noise - level.sigma * noised.x0
    if prediction == "flow":
        return noised.noise - noised.x0
    if prediction == "sample":
        return noised.x0
    raise ValueError(f"Unknown prediction type {prediction!r}.")


class Slopes(NamedTuple):
    """How far things move with a network's output."""

    velocity: float
    """d velocity / d output."""
    x0: float
    """d x_0 / d velocity."""


def slopes(prediction: str, level: NoiseLevel) -> Slopes:
    """Of a network with this kind of output, in absolute value.

    Velocity is noise - x_0 for a flow model and alpha * noise - sigma * x_0 for the others. Its error weighs
    noise levels as they matter for the picture; an eps model's own error hardly weighs the noisiest ones,
    where it is decided what the picture shows. Cut off at LARGEST_SLOPE near pure noise (eps) or picture.
    """
    alpha, sigma = level.alpha, level.sigma
    if prediction == "flow":
        return Slopes(1.0, sigma / (alpha + sigma))
    square = alpha**2 + sigma**2
    of_output = {"epsilon": alpha, "sample": sigma, "v_prediction": square}[prediction]
    return Slopes(min(square / max(of_output, 1e-12), LARGEST_SLOPE), sigma / square)


def share_of(noise_level: Callable[[float], NoiseLevel], timestep: float) -> float:
    """The share of the training range, 0..1, whose timestep is nearest to a given one. noise_level: a
    family's, with timesteps that do not fall as shares rise."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if noise_level(middle).timestep < timestep:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda share: abs(noise_level(share).timestep - timestep))
