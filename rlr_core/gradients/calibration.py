"""A walk before the first update that only measures: it sets the mixture, and the lengths of gradients.

Its gradient is thrown away (math.md section 3).
"""

from __future__ import annotations

import numpy as np
import torch

from rlr_core.diffusion.rollout import Trajectory
from rlr_core.gradients.backward import Signals, backward
from rlr_core.gradients.estimator import Estimator
from rlr_core.gradients.plan import Plan
from rlr_core.gradients.samples import Rollouts
from rlr_core.gradients.statistics import Statistics, mixing_share

Walk = tuple[Trajectory, Signals]


def calibrate(estimator: Estimator, rollouts: Rollouts, norms: bool = False) -> None:
    """Let an estimator remember what its first update is planned from.

    All trajectories take a step before any takes the next: lam is set from the batch's variances in order,
    because the variance of a pathwise cotangent is that of the mixtures before it. norms: measure how long
    gradients are too, for which each trajectory is walked by itself.
    """
    estimator.update_coefficient(rollouts)
    chain, T, world = estimator.chain, estimator.chain.T, estimator.world
    statistics, squares = Statistics(T), torch.zeros(T + 1, dtype=torch.float64)
    walks: list[Walk] = []
    for part, signal in zip(rollouts.parts, estimator.signals(rollouts), strict=True):
        signal = Signals(signal.advantage, signal.pathwise)
        walks += _one_by_one(part.trajectory, signal) if norms else [(part.trajectory, signal)]
    for t in range(1, T + 1):
        lam = _lam(estimator, t, walks)
        for trajectory, signal in walks:
            plan = Plan.everywhere(T, len(signal.advantage), lam).with_deterministic_steps(estimator.sigmas)
            steps = range(t, t + 1)
            result = backward(
                chain, trajectory, estimator.parameters, plan, signal, observer=statistics, steps=steps
            )
            signal.pathwise = result.pathwise
            if norms:
                parts = torch.stack(torch._foreach_norm(result.gradient))
                squares[t] += parts.square().sum().double().cpu()
    totals = statistics.totals(world.sum)
    estimator.running.update(totals)
    if norms:
        squares = world.sum(squares) / world.sum(torch.tensor(float(len(walks))))
        estimator.running.slope = _slopes(squares.numpy(), totals["mixture"])


def _lam(estimator: Estimator, t: int, walks: list[Walk]) -> float:
    """The share of the pathwise cotangent at step t that this batch's own variances ask for."""
    sigma = estimator.sigmas[t - 1]
    if not estimator.pathwise or sigma <= 0:
        return 0.0
    observed = Statistics(estimator.chain.T)
    for trajectory, signal in walks:
        assert signal.pathwise is not None, "parts of one batch are scored alike"
        score = trajectory.noises[t] / sigma
        advantage = signal.advantage.view(-1, *[1] * (score.ndim - 1))
        observed.cotangents(t, signal.pathwise, advantage * score)
    totals = observed.totals(estimator.world.sum)
    return mixing_share(totals["pathwise"][t], totals["score_function"][t])


def _one_by_one(trajectory: Trajectory, signals: Signals) -> list[Walk]:
    """Each rollout of a batch with what the reward says about it."""
    walks = []
    for place in range(len(signals.advantage)):
        one = slice(place, place + 1)
        pathwise = None if signals.pathwise is None else signals.pathwise[one]
        walks.append((trajectory.select(torch.tensor([place])), Signals(signals.advantage[one], pathwise)))
    return walks


def _slopes(gradients: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """How much longer gradients are than cotangents at each step, from mean squares; NaN where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(gradients / mixtures)
    return np.where(np.isfinite(ratio), ratio, np.nan)
