"""How good a gradient estimator is: its noise, its bias, its cost, measured at fixed parameters.

The truth is back-propagation through the whole chain, averaged over trajectories of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sums over independent estimates of one gradient."""

    count: int
    mean: list[Tensor]
    """Mean estimate, a tensor per parameter."""
    variance: float
    """Trace of the covariance of one estimate."""
    projections: Tensor
    """[count, D] inner products of each estimate with D directions."""

    @property
    def square(self) -> float:
        """Unbiased estimate of the squared norm of the expectation."""
        return float(_inner(self.mean, self.mean)) - self.variance / self.count


def moments(estimates: Iterable[list[Tensor]], directions: list[list[Tensor]]) -> Moments:
    """Moments of at least two estimates; directions: what each is projected on."""
    total: list[Tensor] | None = None
    squares, rows = 0.0, []
    for estimate in estimates:
        total = estimate if total is None else [a + g for a, g in zip(total, estimate, strict=True)]
        squares += float(_inner(estimate, estimate))
        rows.append(torch.stack([_inner(estimate, direction) for direction in directions]))
    if total is None or len(rows) < 2:
        raise ValueError("Moments need at least two estimates.")
    count = len(rows)
    mean = [g / count for g in total]
    variance = (squares - count * float(_inner(mean, mean))) / (count - 1)
    return Moments(count, mean, variance, torch.stack(rows))


def paired_z_scores(estimated: Moments, truth: Moments) -> Tensor:
    """Mean over its standard error of estimate less truth, batch by batch, along each direction [D].

    Both saw the same batches, so what batches differ in drops out. 0 where they agree exactly.
    """
    gap = estimated.projections - truth.projections
    error = (gap.var(0) / len(gap)).sqrt()
    return gap.mean(0) / error.clamp(min=1e-300)


def relative_noise(estimated: Moments, truth: Moments) -> float:
    """Standard deviation of one estimate over the norm of the true gradient."""
    return (estimated.variance / max(truth.square, 1e-30)) ** 0.5


def cosine(estimated: Moments, truth: Moments) -> float:
    """Cosine of the expectation and the truth, noise taken out of the norms.

    truth: of other batches, or the noise that both saw would count as agreement. NaN where the noise of a
    mean is as long as what it hides.
    """
    if any(each.square <= each.variance / each.count for each in (estimated, truth)):
        return float("nan")
    found = float(_inner(estimated.mean, truth.mean)) / (estimated.square * truth.square) ** 0.5
    return max(-1.0, min(1.0, found))


def random_directions(parameters: list[Tensor], count: int, seed: int = 0) -> list[list[Tensor]]:
    """`count` random unit directions in parameter space, to project on."""
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for _ in range(count):
        direction = [torch.randn(p.shape, generator=generator).to(p.device) for p in parameters]
        norm = _inner(direction, direction).sqrt()
        directions.append([part / norm for part in direction])
    return directions


def _inner(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Inner product, 0-dim float64."""
    return sum((a.double() * b.double()).sum() for a, b in zip(left, right, strict=True))
