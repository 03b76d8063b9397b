"""Training a corrector on inverted noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlr_core.common.random_streams import stream, torch_stream
from rlr_core.correction.corrector import Corrector
from rlr_core.errors import UserError

HELD_OUT = 0.1
"""Share of the noise that is kept from training, to tell when to stop."""
LEAST = 20
"""Fewer pictures than these teach nothing about a law."""
CHECKS = 20
"""How often a training looks at what it held out."""


@dataclass
class Fit:
    """A trained corrector and what it learned."""

    corrector: Corrector
    before: float
    """Mean square error of the velocity on held-out noise without a correction."""
    after: float
    """The same with it, at its best, which is the one that was kept."""
    steps: int
    """After how many steps that was."""


def fit(
    noise: Tensor,
    *,
    steps: int = 1500,
    batch: int = 128,
    learning_rate: float = 1e-3,
    width: int = 64,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Fit:
    """Train a corrector towards the law of `noise` [N, C, h, w], and keep it as it was where it told held-out
    noise best. Raises UserError for too few samples or latents that are no pictures."""
    if noise.ndim != 4:
        raise UserError(
            f"Noise can be corrected for pictures [C, h, w], not for latents {list(noise.shape[1:])}."
        )
    if len(noise) < LEAST:
        raise UserError(f"{len(noise)} pictures are too few to learn their noise from: give {LEAST} or more.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        corrector = Corrector(noise.shape[1], width).to(noise.device)
    order = torch.from_numpy(stream(seed, "held-out noise").permutation(len(noise))).to(noise.device)
    kept = max(2, round(HELD_OUT * len(noise)))
    test, train = noise[order[:kept]], noise[order[kept:]]
    optimizer = torch.optim.Adam(corrector.parameters(), lr=learning_rate)
    rng = torch_stream(seed, "corrector")
    best, kept_state, best_step = _held_out_loss(corrector, test, seed), None, 0
    before = best
    every = max(1, steps // CHECKS)
    for step in range(steps):
        rows = torch.randint(len(train), (batch,), generator=rng).to(noise.device)
        z, s = _draws(train[rows], rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        corrector.loss(train[rows], z, s).mean().backward()
        optimizer.step()
        if (step + 1) % every == 0 or step == steps - 1:
            loss = _held_out_loss(corrector, test, seed)
            if loss < best:
                best, best_step, kept_state = loss, step + 1, copy.deepcopy(corrector.state_dict())
            if on_progress is not None:
                on_progress(step + 1, steps)
    if kept_state is None:  # nothing was learned that held outside the training noise
        with torch.random.fork_rng(devices=[]):
            corrector = Corrector(noise.shape[1], width).to(noise.device)
    else:
        corrector.load_state_dict(kept_state)
    return Fit(corrector.eval().requires_grad_(False), before, best, best_step)


@torch.no_grad()
def _held_out_loss(corrector: Corrector, noise: Tensor, seed: int, repeats: int = 8) -> float:
    """Mean loss at the same z and s every time it is asked."""
    rng = torch_stream(seed, "held-out corrector")
    losses = [corrector.loss(noise, *_draws(noise, rng)).mean() for _ in range(repeats)]
    return float(torch.stack(losses).mean())


def _draws(like: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal noise in the shape of `like` [B, ...], and times [B], spread evenly."""
    z = torch.randn(like.shape, generator=rng)
    s = (torch.randperm(len(like), generator=rng) + torch.rand(len(like), generator=rng)) / len(like)
    return z.to(like.device), s.to(like.device)
