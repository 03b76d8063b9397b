"""A running mean and standard deviation that stands still inside an update."""

from __future__ import annotations

import torch
from torch import Tensor


class Running:
    """Mean and standard deviation of the scores of the updates so far, older ones forgotten slowly.

    `observe` notes scores; only `commit`, between updates, moves the mean and the deviation. Until the first
    commit the middle and a quarter of the plausible range stand in, or 0 and 1 where that has no ends.
    """

    def __init__(self, plausible: tuple[float, float] = (-float("inf"), float("inf")), memory: float = 0.9):
        """memory: what part of its weight an update keeps when the next one comes."""
        low, high = plausible
        bounded = high - low < float("inf")
        self.mean, self.std = ((low + high) / 2, (high - low) / 4) if bounded else (0.0, 1.0)
        self.memory = memory
        self.sums = torch.zeros(3, dtype=torch.float64)  # weight, weighted sum, weighted sum of squares
        self.observed = torch.zeros(3, dtype=torch.float64)

    def observe(self, scores: Tensor) -> None:
        """Note scores [B] of the update under way."""
        values = scores.detach().double().cpu()
        self.observed += torch.stack(
            [torch.tensor(float(len(values))).double(), values.sum(), values.square().sum()]
        )

    def commit(self) -> None:
        """Take in what was observed since the last commit."""
        if self.observed[0] == 0:
            return
        self.sums = self.memory * self.sums + self.observed
        self.forget()
        self._read()

    def forget(self) -> None:
        """Drop what was observed since the last commit."""
        self.observed = torch.zeros_like(self.observed)

    def standardize(self, scores: Tensor) -> Tensor:
        """(scores - mean) / std, with the mean and deviation of earlier updates."""
        return (scores - self.mean) / self.std

    def _read(self) -> None:
        weight, total, squares = self.sums.tolist()
        self.mean = total / weight
        variance = squares / weight - self.mean**2
        if variance > 1e-12 * max(1.0, self.mean**2):  # a constant score keeps the deviation it had
            self.std = variance**0.5

    def state(self) -> Tensor:
        """Everything, as eight numbers."""
        return torch.cat([torch.tensor([self.mean, self.std], dtype=torch.float64), self.sums, self.observed])

    def restore(self, state: Tensor) -> None:
        """The inverse of `state`."""
        state = state.double().cpu()
        self.mean, self.std = state[:2].tolist()
        self.sums, self.observed = state[2:5].clone(), state[5:8].clone()
