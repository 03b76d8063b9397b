"""What is remembered of earlier updates: how the mixture is set from it, and how deep walks go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlr_core.gradients.statistics import RunningStatistics, Statistics


def remember(pathwise: np.ndarray, score_function: np.ndarray) -> RunningStatistics:
    """After updates whose batches had these variances, of a chain of one step."""
    running = RunningStatistics(1)
    for p, s in zip(pathwise, score_function, strict=True):
        running.update(
            {
                "pathwise": np.array([np.nan, p]),
                "score_function": np.array([np.nan, s]),
                "mixture": np.array([np.nan, 1.0]),
            }
        )
    return running


def test_steady_variances_are_weighted_by_their_inverse():
    running = remember(np.full(50, 1.0), np.full(50, 3.0))
    assert float(running.lam()[1]) == pytest.approx(0.75)


def test_a_cotangent_that_explodes_now_and_then_counts_by_its_typical_size():
    """Once a million times as long: the mixture stays what it was, or a reward with a heavy-tailed gradient
    would be left to the likelihood ratio."""
    usual = remember(np.full(50, 1.0), np.full(50, 7.0)).lam()[1]
    pathwise = np.full(50, 1.0)
    pathwise[20] = 1e6
    assert abs(float(remember(pathwise, np.full(50, 7.0)).lam()[1] - usual)) < 0.05


def test_a_step_that_is_not_seen_keeps_what_was_known_of_it():
    running = remember(np.full(5, 1.0), np.full(5, 3.0))
    unseen = {kind: np.full(2, np.nan) for kind in ("pathwise", "score_function", "mixture")}
    before = running.state_dict()
    running.update(unseen)
    assert all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(before.values(), running.state_dict().values(), strict=True)
    )


def test_state_comes_back():
    running = remember(np.array([1.0, 5.0]), np.array([2.0, 2.0]))
    other = RunningStatistics(1)
    other.load_state_dict(running.state_dict())
    assert torch.equal(other.lam(), running.lam()) and np.array_equal(other.norms(), running.norms())


def test_totals_do_not_depend_on_how_a_batch_is_cut():
    rng = torch.Generator().manual_seed(0)
    p, s, u = torch.randn(3, 12, 4, generator=rng)
    totals = []
    for size in (12, 5, 1):
        seen = Statistics(1)
        for part in torch.arange(12).split(size):
            seen.cotangents(1, p[part], s[part])
            seen.mixture(1, u[part])
        totals.append(seen.totals())
    for name, whole in totals[0].items():
        for other in totals[1:]:
            assert other[name][1] == pytest.approx(whole[1], rel=1e-5)
