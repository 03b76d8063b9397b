"""A plan: which steps a walk visits, how it mixes the two ways of filling a cotangent, and with what weight.

Every method of math.md's table is a plan. Plans are per sample, so that every trajectory of a batch may draw
its own window or depth; the same random numbers give the same plan on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Plan:
    """What the walk does with each step t = 1..T (row 0 is unused) of each of B trajectories."""

    lam: Tensor
    """[T + 1, B] share of the pathwise cotangent; 0 is the likelihood ratio alone."""
    weight: Tensor
    """[T + 1, B] factor on the step's contribution; 0 where the step is not visited."""
    perturbed: Tensor
    """[T + 1, B] bool: steps whose adapter is perturbed in the rollout (zeroth order)."""

    @classmethod
    def empty(cls, T: int, batch: int) -> Plan:
        """No step visited, none perturbed."""
        shape = (T + 1, batch)
        return cls(torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))

    @classmethod
    def everywhere(cls, T: int, batch: int, lam: Tensor | float) -> Plan:
        """All steps visited with weight 1. lam: a number, or one per step [T + 1]."""
        plan = cls.empty(T, batch)
        plan.weight[1:] = 1.0
        plan.lam[1:] = torch.as_tensor(lam, dtype=torch.float32).expand(T + 1)[1:, None] * torch.ones(batch)
        return plan

    @property
    def T(self) -> int:
        return self.lam.shape[0] - 1

    @property
    def visited(self) -> Tensor:
        """[T + 1, B] bool."""
        return self.weight != 0

    def select(self, index: Tensor) -> Plan:
        """The plan of some of the trajectories. index: [N] integers."""
        return Plan(self.lam[:, index], self.weight[:, index], self.perturbed[:, index])

    def with_deterministic_steps(self, sigmas: list[float]) -> Plan:
        """lam = 1 at every visited step without noise: there is no likelihood ratio there (rule 6)."""
        deterministic = torch.tensor([False] + [sigma <= 0 for sigma in sigmas])
        self.lam[deterministic] = 1.0
        return self


# --- laws of the half-order window's first step j (rules 1 and 2) ---


def draw_starts(
    law: str,
    candidates: list[int],
    count: int,
    rng: np.random.Generator,
    norms: np.ndarray | None = None,
    bounds: tuple[int, int] | None = None,
) -> np.ndarray:
    """First steps j of `count` half-order windows, drawn among the candidates (those that have noise).

    law: uniform; gradient_norm, the softmax of running gradient norms `norms` [T + 1] scaled by their mean;
    range, uniform on the candidates within `bounds`. Unbiased for each of them, because every step outside
    the window is covered by the remainder.
    """
    steps = np.asarray(candidates)
    if law == "range" and bounds is not None:
        steps = steps[(steps >= bounds[0]) & (steps <= bounds[1])]
    probabilities = np.full(len(steps), 1 / len(steps))
    if law == "gradient_norm" and norms is not None and np.mean(norms[steps]) > 0:
        logits = norms[steps] / np.mean(norms[steps])
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
    return rng.choice(steps, size=count, p=probabilities)


# --- roulette: random depths of a given mean (math.md section 3) ---


LEAST_SURVIVAL = 0.05


def survival(norms: np.ndarray, budget: float) -> np.ndarray:
    """P(K >= t) for t = 1..T (entry 0 unused), proportional to the gradient norms made non-increasing.

    norms: [T + 1] running root-mean-squares of each step's contribution; budget: mean depth E[K], 1..T.
    The first step always survives, every other one with at least LEAST_SURVIVAL (without a chance there is
    bias), and the mean depth is the budget where that allows it.
    """
    T = len(norms) - 1
    profile = np.maximum.accumulate(np.maximum(norms[1:], 1e-12)[::-1])[::-1]
    profile = profile / profile[0]
    if budget >= T:
        survive = np.ones(T)
    else:
        low, high = 0.0, 1.0 / profile[-1]
        survive = np.ones(T)
        for _ in range(100):
            middle = (low + high) / 2
            survive = np.clip(middle * profile, LEAST_SURVIVAL, 1.0)
            survive[0] = 1.0
            low, high = (middle, high) if survive.sum() < budget else (low, middle)
    return np.concatenate([[1.0], survive])


def draw_depths(survive: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Depths K of `count` trajectories with P(K >= t) = survive[t], drawn systematically.

    One uniform offset serves the whole batch: each K keeps its law, and the batch's total barely varies.
    """
    offsets = (rng.permutation(count) + rng.uniform()) / count
    return (survive[None, 1:] > offsets[:, None]).sum(axis=1).clip(min=1)
