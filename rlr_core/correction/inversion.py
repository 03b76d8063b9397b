"""The noise that a deterministic sampler turns into given pictures, by fixed points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError

LEAST_PACE = 1 / 64
"""How small a part of a fixed-point step is tried before a sample is left where it is."""


@dataclass
class Inversion:
    """Noise behind B pictures, and how nearly the sampler's steps take it there."""

    noise: Tensor
    """x_T [B, ...]."""
    residual: Tensor
    """[B] root mean square of x_{t-1} - mean(x_t, t), of the worst step. It bounds nothing by itself: where a
    step hardly depends on a direction, a small residual leaves a large error of the state."""


@torch.no_grad()
def invert(
    chain: Chain,
    latents: Tensor,
    conditioning: Conditioning,
    *,
    iterations: int = 50,
    tolerance: float = 1e-5,
) -> Inversion:
    """Solve x_{t-1} = mean(x_t, t) for x_t, from t = 1 to T. latents: x_0 [B, ...].

    The step at t is evaluated at x_t itself, as in sampling: with mean = a x + b output, the map
    x <- (x_{t-1} - b output(x, t)) / a has x_t as its fixed point, and contracts where |b / a| times the
    network's Lipschitz constant is below 1. Elsewhere a sample goes a smaller part of the way each time.
    Raises UserError for a chain with noise, which has no inverse.
    """
    if any(chain.sigma(t) > 0 for t in range(1, chain.T + 1)):
        raise UserError("A sampler that adds noise cannot be run backwards: set sampler.eta to 0.")
    worst = torch.zeros(len(latents), device=latents.device)
    x = latents
    for t in range(1, chain.T + 1):
        x, residual = _solve(chain, x, t, conditioning, iterations, tolerance)
        worst = torch.maximum(worst, residual)
    return Inversion(x, worst)


def _solve(
    chain: Chain, after: Tensor, t: int, conditioning: Conditioning, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """x_t [B, ...] with mean(x_t, t) = after, and the residual [B] that is left."""
    slope = chain.step(t).a
    x = after / slope
    gap = after - chain.mean(x, t, conditioning)
    size = _rms(gap)
    pace = torch.ones_like(size)
    for _ in range(iterations):
        if bool(((size <= tolerance) | (pace < LEAST_PACE)).all()):
            break
        trial = x + _column(pace, x) * gap / slope
        trial_gap = after - chain.mean(trial, t, conditioning)
        trial_size = _rms(trial_gap)
        nearer = trial_size < size
        keep = _column(nearer, x)
        x, gap = torch.where(keep, trial, x), torch.where(keep, trial_gap, gap)
        size = torch.where(nearer, trial_size, size)
        pace = torch.where(nearer, (1.5 * pace).clamp(max=1), pace / 2)
    return x, size


def state_error(chain: Chain, noise: Noise, conditioning: Conditioning, iterations: int = 50) -> Tensor:
    """[B] root mean square distance, in standard deviations of the noise, between noise and what comes back
    when it is sampled and inverted: what the residual cannot tell."""
    start = noise.initial()
    final = rollout(chain, noise, conditioning, keep=False).final
    return _rms(invert(chain, final, conditioning, iterations=iterations).noise - start)


def _rms(x: Tensor) -> Tensor:
    """[B] root mean square of x [B, ...]."""
    return x.flatten(1).square().mean(1).sqrt()


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
