"""A running mean and standard deviation that stands still inside an update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Running:
    """Mean and standard deviation of the scores of the updates so far, older ones forgotten slowly.

    `observe` notes scores; only `commit`, between updates, moves the mean and the deviation. Until the first
    commit the middle and a quarter of the plausible range stand in, or 0 and 1 where that has no ends.
    """

    def __init__(
        self,
        plausible: tuple[float, float] = (-float("inf"), float("inf")),
        memory: float = 0.9,
        within_prompts: bool = False,
    ):
        """memory: what part of its weight an update keeps when the next one comes; within_prompts: the
        deviation is that of the pictures of one prompt around their mean, where prompts have several."""
        low, high = plausible
        bounded = high - low < float("inf")
        self.mean, self.std = ((low + high) / 2, (high - low) / 4) if bounded else (0.0, 1.0)
        self.memory, self.within_prompts = memory, within_prompts
        self.of_prompts: dict[str, Tensor] = {}  # what was observed, apart for each prompt
        self.spread = torch.zeros(
            2, dtype=torch.float64
        )  # degrees of freedom, sum of squares around the means
        self.sums = torch.zeros(3, dtype=torch.float64)  # weight, weighted sum, weighted sum of squares
        self.observed = torch.zeros(3, dtype=torch.float64)

    def observe(self, scores: Tensor, prompts: Sequence[str] = ()) -> None:
        """Note scores [B] of the update under way. prompts: theirs, where deviations are within prompts."""
        values = scores.detach().double().cpu()
        moments = torch.stack([torch.ones_like(values), values, values.square()], 1)  # [B, 3]
        self.observed += moments.sum(0)
        if self.within_prompts:
            for prompt, moment in zip(prompts, moments, strict=True):
                self.of_prompts[prompt] = self.of_prompts.get(prompt, 0) + moment

    def commit(self) -> None:
        """Take in what was observed since the last commit."""
        if self.observed[0] == 0:
            return
        self.sums = self.memory * self.sums + self.observed
        self.spread = self.memory * self.spread
        for count, total, squares in self.of_prompts.values():
            self.spread += torch.stack([count - 1, squares - total**2 / count])
        self.forget()
        self._read()

    def forget(self) -> None:
        """Drop what was observed since the last commit."""
        self.observed = torch.zeros_like(self.observed)
        self.of_prompts = {}

    def standardize(self, scores: Tensor) -> Tensor:
        """(scores - mean) / std, with the mean and deviation of earlier updates."""
        return (scores - self.mean) / self.std

    def _read(self) -> None:
        weight, total, squares = self.sums.tolist()
        self.mean = total / weight
        variance = squares / weight - self.mean**2
        freedom, around = self.spread.tolist()
        if freedom > 0:
            variance = around / freedom
        if variance > 1e-12 * max(1.0, self.mean**2):  # a constant score keeps the deviation it had
            self.std = variance**0.5

    def state(self) -> Tensor:
        """Everything between two updates, as ten numbers."""
        scale = torch.tensor([self.mean, self.std], dtype=torch.float64)
        return torch.cat([scale, self.sums, self.observed, self.spread])

    def restore(self, state: Tensor) -> None:
        """The inverse of `state`."""
        state = state.double().cpu()
        self.mean, self.std = state[:2].tolist()
        self.sums, self.observed, self.spread = state[2:5].clone(), state[5:8].clone(), state[8:10].clone()
