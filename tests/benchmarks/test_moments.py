"""What is said about a gradient estimator is right for estimators that are known."""

from __future__ import annotations

import math

import torch

from rlr_core.benchmarks.moments import cosine, moments, random_directions, relative_noise

TRUTH = torch.tensor([3.0, 4.0, 0.0, 0.0])


def estimates(mean, noise, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return ([mean + noise * torch.randn(4, generator=generator)] for _ in range(count))


def measured(mean, noise, count=400, seed=0):
    return moments(estimates(mean, noise, count, seed), random_directions([TRUTH], 2))


def test_the_cosine_is_that_of_the_means():
    truth = measured(TRUTH, 1.0, seed=1)
    assert abs(cosine(measured(2 * TRUTH, 5.0, seed=2), truth) - 1) < 0.01
    turned = torch.tensor([4.0, -3.0, 0.0, 0.0])
    assert abs(cosine(measured(turned, 1.0, seed=3), truth)) < 0.02
    assert abs(cosine(measured(TRUTH + turned, 1.0, seed=4), truth) - 0.5**0.5) < 0.02


def test_noise_is_never_taken_for_agreement():
    """Two means of 24 estimates each, mostly noise: no cosine is the answer, and never one beyond 1."""
    truth = measured(TRUTH, 40.0, count=24, seed=5)
    found = [cosine(measured(TRUTH, 40.0, count=24, seed=seed), truth) for seed in range(6, 30)]
    assert all(math.isnan(value) or abs(value) <= 1 for value in found)
    assert any(map(math.isnan, found))


def test_noise_is_told_in_lengths_of_the_gradient():
    found = relative_noise(measured(TRUTH, 1.0, seed=1), measured(TRUTH, 0.1, seed=2))
    assert abs(found - 2.0 / 5.0) < 0.02  # the deviation of four coordinates over the norm
