"""Every method's mean is the true gradient, or is seen not to be, on chains whose gradient is known.

A z-score per coordinate: (mean of many estimates - truth) / standard error, with fixed seeds. The truth is
autograd through the whole unrolled chain, written apart from the engine, with its own standard error.
"""

from __future__ import annotations

import functools

import pytest
import torch
from marks import quick
from toy import ToyChain, estimates, z_scores

from rlr_core.config import MethodConfig
from rlr_core.gradients import advantages as advantages_module

CHAINS = {
    "noise everywhere": ToyChain([0.3, 0.4, 0.5, 0.5, 0.6]),
    "silent last step": ToyChain([0.0, 0.4, 0.5, 0.5, 0.6]),
    "silent inside": ToyChain([0.0, 0.5, 0.0, 0.0, 0.6, 0.5]),
    "linear": ToyChain([0.2, 0.4, 0.4, 0.3], nonlinear=False),
    "two steps": ToyChain([0.4, 0.6]),
}
SEEN = 6.0
"""A bias is seen from this z-score on."""
HONEST = 4.0
"""The largest of three z-scores of an unbiased estimate stays below this, but for 2 in 10,000."""


@functools.cache
def truth(chain: str) -> tuple[torch.Tensor, torch.Tensor]:
    return CHAINS[chain].true_gradient(64 * 20_000)


def largest_z(chain: str, method: MethodConfig, updates: int = 200, **arguments) -> float:
    found = estimates(CHAINS[chain], method, updates=updates, **arguments)
    return float(z_scores(found, *truth(chain)).abs().max())


def rough_surrogate(chain: str):
    """Correlates with the toy reward, and is neither it nor a multiple of it."""
    target = CHAINS[chain].target
    return lambda x0: -0.5 * (x0 - target).square().sum(1)


def test_linear_chain_agrees_with_its_closed_form():
    """E[x_0] is linear in theta there, so without the cosine the gradient can be written down."""
    chain = CHAINS["linear"]
    theta = chain.theta.clone().requires_grad_()
    mean, spread = torch.zeros(3), torch.eye(3)
    for t in range(chain.T, 0, -1):
        push = torch.eye(3) + chain.gain * chain.A[t - 1]
        mean = push @ mean + chain.gain * chain.B[t - 1] @ theta
        spread = push @ spread @ push.T + chain.sigma(t) ** 2 * torch.eye(3)
    # E cos(2 x) of a Gaussian x is cos(2 m) exp(-2 v)
    wave = 0.5 * torch.cos(2 * mean[0]) * torch.exp(-2 * spread[0, 0])
    reward = -(mean - chain.target).square().sum() + wave
    (exact,) = torch.autograd.grad(reward, theta)
    found, error = truth("linear")
    assert float(((found - exact) / error).abs().max()) < HONEST


@pytest.mark.parametrize("chain", quick(CHAINS, "two steps"))
@pytest.mark.parametrize(
    "method", quick(["full", "likelihood_ratio", "zeroth_order", "adaptive"], "adaptive")
)
def test_method_is_unbiased(method, chain):
    assert largest_z(chain, MethodConfig(method, perturbations=8)) < HONEST


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["noise everywhere", "silent inside", "linear"])
@pytest.mark.parametrize("remainder", ["zeroth_order", "likelihood_ratio", "importance"])
def test_rlr_is_unbiased_for_every_remainder(remainder, chain):
    assert largest_z(chain, MethodConfig("rlr", remainder=remainder, perturbations=8)) < HONEST


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_rlr_is_unbiased_for_every_window(window):
    method = MethodConfig("rlr", window=window, remainder="likelihood_ratio")
    assert largest_z("noise everywhere", method) < HONEST


@pytest.mark.slow
@pytest.mark.parametrize("start", ["uniform", "gradient_norm", "range"])
@pytest.mark.parametrize("remainder", ["zeroth_order", "likelihood_ratio"])
def test_rlr_is_unbiased_for_every_start_law(start, remainder):
    method = MethodConfig("rlr", start=start, start_range=[3, 4], remainder=remainder, perturbations=8)
    assert largest_z("noise everywhere", method) < HONEST


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("chain", ["noise everywhere", "silent inside"])
def test_roulette_is_unbiased_at_every_budget(budget, chain):
    assert largest_z(chain, MethodConfig("adaptive", budget=max(budget, 1 / CHAINS[chain].T))) < HONEST


@pytest.mark.slow
@pytest.mark.parametrize("method", ["likelihood_ratio", "ddpo", "adaptive", "rlr", "zeroth_order"])
def test_black_box_reward_is_unbiased_where_the_last_step_has_noise(method):
    options = MethodConfig(method, perturbations=8, budget=0.6)
    assert largest_z("noise everywhere", options, black_box=True) < HONEST


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_surrogate_leaves_no_bias_and_lowers_the_noise(budget):
    method = MethodConfig("adaptive", budget=budget)
    surrogate = rough_surrogate("noise everywhere")
    assert largest_z("noise everywhere", method, black_box=True, surrogate=surrogate) < HONEST
    chain = CHAINS["noise everywhere"]
    bare = estimates(chain, method, updates=60, black_box=True).std(0).norm()
    helped = estimates(chain, method, updates=60, black_box=True, surrogate=surrogate).std(0).norm()
    assert helped < 0.5 * bare


@pytest.mark.slow
def test_surrogate_is_unbiased_through_silent_steps_inside():
    chain = ToyChain([0.3, 0.5, 0.0, 0.0, 0.6, 0.5])
    found = estimates(chain, MethodConfig("adaptive", budget=1.0), updates=200, black_box=True,
                      surrogate=lambda x0: -0.5 * (x0 - chain.target).square().sum(1))  # fmt: skip
    assert float(z_scores(found, *chain.true_gradient(64 * 20_000)).abs().max()) < HONEST


# --- what must be seen to be biased, by the same test ---


@pytest.mark.slow
@pytest.mark.parametrize("random_depth", [False, True])
def test_truncation_is_seen_to_be_biased(random_depth):
    method = MethodConfig("truncated", depth=2, random_depth=random_depth)
    assert largest_z("noise everywhere", method) > SEEN


@pytest.mark.slow
def test_dropped_remainder_is_seen_to_be_biased():
    assert largest_z("noise everywhere", MethodConfig("rlr", remainder="none", window=1)) > SEEN


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["silent last step", "silent inside"])
def test_hidden_last_steps_are_seen_to_be_biased(chain):
    assert largest_z(chain, MethodConfig("adaptive", budget=1.0), black_box=True) > SEEN


@pytest.mark.slow
def test_twin_as_baseline_is_seen_to_be_biased(monkeypatch):
    """The twin shares the noise, so its reward is not independent of z (rule 4)."""

    def twin_baseline(rewards, groups, kind, running_mean=None):
        values = rewards - rewards.flip(0)
        return advantages_module.Advantages(values, torch.ones_like(values))

    method = MethodConfig("rlr", window=2, perturbations=8)
    monkeypatch.setattr("rlr_core.gradients.estimator.advantages", twin_baseline)
    assert largest_z("noise everywhere", method, updates=400) > SEEN


# --- noise: what the adaptive mixture is for ---


def noise(chain: ToyChain, method: MethodConfig) -> float:
    return float(estimates(chain, method, updates=80).std(0).norm())


@pytest.mark.slow
def test_adaptive_is_as_good_as_the_better_of_its_parts_and_beats_both_on_a_chaotic_chain():
    calm = ToyChain([0.3] * 8, gain=0.2)
    chaotic = ToyChain([0.3] * 12, gain=2.5)
    whole = MethodConfig("adaptive", budget=1.0)
    assert noise(calm, whole) < 1.15 * noise(calm, MethodConfig("full"))
    assert noise(calm, whole) < 0.3 * noise(calm, MethodConfig("likelihood_ratio"))
    assert noise(chaotic, whole) < 0.75 * noise(chaotic, MethodConfig("full"))
    assert noise(chaotic, whole) < 0.75 * noise(chaotic, MethodConfig("likelihood_ratio"))
