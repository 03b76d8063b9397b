"""What the methods remember from update to update: variances of the two cotangents, gradient norms.

One update is observed by `Statistics`; `RunningStatistics` averages updates. An update is planned from
earlier ones only, because its own batch would bias it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

DECAY = 0.8
"""Of the running means: the last five updates or so count."""


class Statistics:
    """Sums over one update's walks, per step t = 1..T; kept on the device, read once at the end."""

    def __init__(self, T: int):
        self.T = T
        self._moments: dict[tuple[str, int], list[Tensor]] = {}
        self._counts = {kind: np.zeros(T + 1) for kind in ("pathwise", "score_function", "gradient")}
        self._squares: dict[int, Tensor] = {}

    def cotangents(self, t: int, pathwise: Tensor, score_function: Tensor) -> None:
        """Add a batch's pathwise and score-function cotangents [B, ...] of step t."""
        for kind, value in (("pathwise", pathwise), ("score_function", score_function)):
            self._counts[kind][t] += value.shape[0]
            parts = [value.sum(0), value.square().sum()]
            if (kind, t) in self._moments:
                parts = [old + new for old, new in zip(self._moments[kind, t], parts, strict=True)]
            self._moments[kind, t] = parts

    def contribution(self, t: int, norm: Tensor, samples: int) -> None:
        """Add the norm (0-dim) of step t's gradient, a sum over `samples` trajectories."""
        self._counts["gradient"][t] += samples
        self._squares[t] = self._squares.get(t, torch.zeros_like(norm)) + norm**2 / samples

    def totals(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, np.ndarray]:
        """Per step [T + 1]: variance (trace) of both cotangents, mean square of the gradient; NaN if unseen.

        reduce: sums a tensor over all processes.
        """
        reduce = reduce or (lambda tensor: tensor)
        counts = {k: reduce(torch.from_numpy(v.copy())).numpy() for k, v in self._counts.items()}
        totals = {kind: np.full(self.T + 1, np.nan) for kind in ("pathwise", "score_function", "gradient")}
        for t in range(1, self.T + 1):
            for kind in ("pathwise", "score_function"):
                if (count := counts[kind][t]) > 1:
                    whole, square = (reduce(part) for part in self._parts(kind, t))
                    totals[kind][t] = float((square - whole.square().sum() / count) / (count - 1))
            if (count := counts["gradient"][t]) > 0:
                totals["gradient"][t] = float(reduce(self._squares.get(t, self._zero()))) / count
        return totals

    def _parts(self, kind: str, t: int) -> list[Tensor]:
        if (kind, t) in self._moments:
            return self._moments[kind, t]
        return [torch.zeros_like(part) for part in next(iter(self._moments.values()))]

    def _zero(self) -> Tensor:
        return torch.zeros_like(next(iter(self._squares.values())))


class RunningStatistics:
    """Running means over updates; the state that `lam`, the roulette and the gradient-norm law read."""

    def __init__(self, T: int):
        self.T = T
        self.log_pathwise = np.full(T + 1, np.nan)
        self.log_score_function = np.full(T + 1, np.nan)
        self.square = np.full(T + 1, np.nan)

    def update(self, totals: dict[str, np.ndarray]) -> None:
        """Take in one update's `Statistics.totals`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            self.log_pathwise = _average(self.log_pathwise, np.log(np.maximum(totals["pathwise"], 1e-30)))
            self.log_score_function = _average(
                self.log_score_function, np.log(np.maximum(totals["score_function"], 1e-30))
            )
        self.square = _average(self.square, totals["gradient"])

    def lam(self) -> Tensor:
        """Inverse-variance share of the pathwise cotangent per step [T + 1]; 1 where nothing is known."""
        log_odds = np.nan_to_num(self.log_score_function - self.log_pathwise, nan=np.inf)
        return torch.from_numpy(_sigmoid(log_odds)).float()

    def norms(self) -> np.ndarray:
        """Root-mean-square gradient norm per step [T + 1]; the mean of the known ones where unknown."""
        known = self.square[1:][np.isfinite(self.square[1:])]
        fill = float(known.mean()) if len(known) else 1.0
        return np.sqrt(np.nan_to_num(self.square, nan=fill))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value.copy()) for name, value in vars(self).items() if name != "T"}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.numpy().copy())


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
