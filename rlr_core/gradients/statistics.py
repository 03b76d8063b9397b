"""What the methods remember from update to update: variances of the two cotangents, gradient norms.

One update is observed by `Statistics`; `RunningStatistics` averages updates. An update is planned from
earlier ones only, because its own batch would bias it. Everything is a sum over trajectories, so nothing
depends on how a batch is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

DECAY = 0.9
"""Of the running means: the last ten updates or so count."""

Cotangent = str
KINDS: tuple[Cotangent, ...] = ("pathwise", "score_function")


class Statistics:
    """Sums over one update's walks, per step t = 1..T; kept on the device, read once at the end."""

    def __init__(self, T: int):
        self.T = T
        self._moments: dict[tuple[Cotangent, int], list[Tensor]] = {}
        self._counts = {kind: np.zeros(T + 1) for kind in (*KINDS, "mixture")}
        self._squares: dict[int, Tensor] = {}

    def cotangents(self, t: int, pathwise: Tensor, score_function: Tensor) -> None:
        """Add a batch's pathwise and score-function cotangents [B, ...] of step t."""
        for kind, value in zip(KINDS, (pathwise, score_function), strict=True):
            self._counts[kind][t] += value.shape[0]
            parts = [value.sum(0), value.square().sum()]
            if (kind, t) in self._moments:
                parts = [old + new for old, new in zip(self._moments[kind, t], parts, strict=True)]
            self._moments[kind, t] = parts

    def mixture(self, t: int, mixed: Tensor) -> None:
        """Add the cotangents u_t [B, ...] that step t of these trajectories was walked with, unweighted."""
        self._counts["mixture"][t] += mixed.shape[0]
        square = mixed.square().sum()
        self._squares[t] = self._squares[t] + square if t in self._squares else square

    def totals(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, np.ndarray]:
        """Per step [T + 1]: variance (trace) of both cotangents, mean square of the mixture; NaN if unseen.

        reduce: sums a tensor over all processes.
        """
        reduce = reduce or (lambda tensor: tensor)
        counts = {k: reduce(torch.from_numpy(v.copy())).numpy() for k, v in self._counts.items()}
        totals = {kind: np.full(self.T + 1, np.nan) for kind in (*KINDS, "mixture")}
        for t in range(1, self.T + 1):
            for kind in KINDS:
                if (count := counts[kind][t]) > 1:
                    whole, square = (reduce(part) for part in self._parts(kind, t))
                    totals[kind][t] = float((square - whole.square().sum() / count) / (count - 1))
            if (count := counts["mixture"][t]) > 0:
                totals["mixture"][t] = float(reduce(self._squares.get(t, self._zero()))) / count
        return totals

    def _parts(self, kind: Cotangent, t: int) -> list[Tensor]:
        if (kind, t) in self._moments:
            return self._moments[kind, t]
        return [torch.zeros_like(part) for part in next(iter(self._moments.values()))]

    def _zero(self) -> Tensor:
        return torch.zeros_like(next(iter(self._squares.values())))


class RunningStatistics:
    """Running means over updates; the state that `lam`, the roulette and the gradient-norm law read."""

    def __init__(self, T: int):
        self.T = T
        self.log_mean = {kind: np.full(T + 1, np.nan) for kind in KINDS}
        """Of the log of a batch's variance."""
        self.square = np.full(T + 1, np.nan)
        """Mean square of the cotangent that a step was walked with."""
        self.slope = np.full(T + 1, np.nan)
        """Root-mean-square of |g_t| over that of |u_t|, as calibrated."""

    def update(self, totals: dict[str, np.ndarray]) -> None:
        """Take in one update's `Statistics.totals`."""
        for kind in KINDS:
            self.log_mean[kind] = _average(self.log_mean[kind], np.log(np.maximum(totals[kind], 1e-30)))
        self.square = _average(self.square, totals["mixture"])

    def lam(self) -> Tensor:
        """Inverse-variance share of the pathwise cotangent per step [T + 1]; 1 where nothing is known.

        The variances are taken by the mean of their logs, their typical size: a mean of the variances is
        ruled by the last explosion. Counting the spread of the logs too, V = exp(m + 2 v), is quieter on
        chains that explode now and then, but a reward whose own gradient is heavy-tailed, as the demo's is,
        then hands its steps to the likelihood ratio, whose noise is a hundred times as long.
        """
        log_odds = np.nan_to_num(self.log_mean["score_function"] - self.log_mean["pathwise"], nan=np.inf)
        return torch.from_numpy(_sigmoid(log_odds)).float()

    def norms(self) -> np.ndarray:
        """Root-mean-square norm of a trajectory's gradient at each step [T + 1]; as good as known.

        A trajectory's own |g_t| would take a backward pass of its own. Its cotangent |u_t| is at hand in
        every walk, and how much longer g_t is hardly changes: the calibration has measured it.
        """
        known = self.square[1:][np.isfinite(self.square[1:])]
        fill = float(known.mean()) if len(known) else 1.0
        return np.sqrt(np.nan_to_num(self.square, nan=fill)) * np.nan_to_num(self.slope, nan=1.0)

    def state_dict(self) -> dict[str, Tensor]:
        arrays = {"square": self.square, "slope": self.slope}
        arrays |= {f"log_mean.{kind}": value for kind, value in self.log_mean.items()}
        return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        arrays = {name: value.numpy().copy() for name, value in state.items()}
        self.square, self.slope = arrays["square"], arrays["slope"]
        for kind in KINDS:
            self.log_mean[kind] = arrays[f"log_mean.{kind}"]


def mixing_share(pathwise_variance: float, score_variance: float) -> float:
    """lambda = Var(s) / (Var(s) + Var(p)); 1 when both are 0."""
    if not np.isfinite(pathwise_variance):
        return 0.0
    total = pathwise_variance + score_variance
    return score_variance / total if total > 0 else 1.0


def _average(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Running mean where both are known, whichever is known elsewhere."""
    both = DECAY * old + (1 - DECAY) * new
    return np.where(np.isfinite(both), both, np.where(np.isfinite(new), new, old))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.clip(x, -80, 80)))
