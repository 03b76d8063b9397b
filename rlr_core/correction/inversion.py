"""The noise that a deterministic sampler turns into given pictures, by fixed points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError

HISTORY = 5
"""How many earlier moves of a sample the next one is extrapolated from."""
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
    network's Lipschitz constant is below 1. Near the picture it hardly does, so moves are extrapolated
    (Anderson 1965), and one that leads away is taken back and tried smaller.
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

    def move_from(x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the fixed-point map would go from x, and the residual [B] there."""
        gap = after - chain.mean(x, t, conditioning)
        return gap / slope, _rms(gap)

    x = after / slope
    move, size = move_from(x)
    best_x, best_move, best = x, move, size
    pace = torch.ones_like(size)
    steps: list[Tensor] = []  # differences of x and of its moves, the last HISTORY of each, [B, D]
    turns: list[Tensor] = []
    for _ in range(iterations):
        if bool(((best <= tolerance) | (pace < LEAST_PACE)).all()):
            break
        trial = x + _column(pace, x) * move - _extrapolation(steps, turns, move, pace)
        trial_move, trial_size = move_from(trial)
        away = ~(trial_size <= 2 * best)  # also where it is not a number
        kept = (~away)[:, None]
        steps = [d * kept for d in steps[1 - HISTORY :]] + [_masked(trial - x, kept)]
        turns = [d * kept for d in turns[1 - HISTORY :]] + [_masked(trial_move - move, kept)]
        back = _column(away, x)
        x, move = torch.where(back, best_x, trial), torch.where(back, best_move, trial_move)
        pace = torch.where(away, pace / 2, (1.5 * pace).clamp(max=1))
        nearer = _column(trial_size < best, x)
        best_x, best_move = torch.where(nearer, x, best_x), torch.where(nearer, move, best_move)
        best = torch.where(trial_size < best, trial_size, best)
    return best_x, best


def _extrapolation(steps: list[Tensor], turns: list[Tensor], move: Tensor, pace: Tensor) -> Tensor:
    """What to take from x + pace * move [B, ...], from how earlier moves turned along earlier steps."""
    if not steps:
        return torch.zeros_like(move)
    step, turn = torch.stack(steps, 2).double(), torch.stack(turns, 2).double()  # [B, D, H]
    gram = turn.transpose(1, 2) @ turn
    ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1) + 1e-30
    gram = gram + ridge[:, None, None] * torch.eye(len(steps), dtype=gram.dtype, device=gram.device)
    share = torch.linalg.solve(gram, turn.transpose(1, 2) @ move.flatten(1).double()[:, :, None])
    return ((step + pace.double()[:, None, None] * turn) @ share).view_as(move).to(move)


def _masked(difference: Tensor, kept: Tensor) -> Tensor:
    """[B, D], 0 for samples whose move was taken back."""
    return torch.where(kept, difference.flatten(1), torch.zeros_like(difference.flatten(1)))


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
