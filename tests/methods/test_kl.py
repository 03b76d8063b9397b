"""The pull to the base model of the steps that no walk visits: it is in what perturbed twins differ in."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from toy import ToyChain, estimates, z_scores

from rlr_core.config import MethodConfig

WEIGHT = 2.0
BASE_OFFSET = 0.6  # the base model's parameters are further along by this


def make() -> ToyChain:
    return ToyChain([0.4, 0.5, 0.6])


@contextmanager
def at_base(chain: ToyChain):
    chain.offset = torch.full_like(chain.offset, BASE_OFFSET)
    try:
        yield
    finally:
        chain.offset = torch.zeros_like(chain.offset)


def perturbed_kl_gradient(chain: ToyChain, windows: list[list[int]], samples: int) -> tuple:
    """Gradient of E[R] - WEIGHT * KL and its standard error, by autograd; windows: the walked steps, of which
    each is as likely.

    A walked step's KL moves with its own parameters at the states as they are; that of the others with
    everything that the perturbation moves, states too.
    """
    rng = torch.Generator().manual_seed(5)
    blocks = []
    for _ in range(64):
        total = torch.zeros(3)
        for walked in windows:
            theta, own, others = (chain.theta.detach().clone().requires_grad_() for _ in range(3))
            x = y = torch.randn(samples // 64, 3, generator=rng)
            value = torch.zeros(())
            for t in range(chain.T, 0, -1):
                z = chain.sigma(t) * torch.randn(x.shape, generator=rng)
                mean_x = mean_of(chain, x, t, theta)
                here = own if t in walked else others
                state = y.detach() if t in walked else y
                base = mean_of(chain, state, t, chain.theta.detach() + BASE_OFFSET)
                kl = (mean_of(chain, state, t, here) - base).square().sum(1) / (2 * chain.sigma(t) ** 2)
                value = value - WEIGHT * kl.mean()
                x = mean_x + z
                y = mean_of(chain, y, t, others if t not in walked else chain.theta.detach()) + z
            value = value + chain.reward(x).mean()
            total += sum(torch.autograd.grad(value, [theta, own, others], allow_unused=False))
        blocks.append(total / len(windows))
    stacked = torch.stack(blocks)
    return stacked.mean(0), stacked.std(0) / 8


def mean_of(chain: ToyChain, x, t, theta):
    drive = x @ chain.A[t - 1].T + theta @ chain.B[t - 1].T
    return x + chain.gain * torch.tanh(drive)


@pytest.mark.slow
def test_perturbed_steps_are_pulled_to_the_base():
    chain = make()
    method = MethodConfig("rlr", window=1, kl_weight=WEIGHT, perturbations=8)
    found = estimates(chain, method, updates=200, base=lambda: at_base(chain))
    truth = perturbed_kl_gradient(chain, [[1, 2], [1, 3]], 64 * 10_000)
    assert float(z_scores(found, *truth).abs().max()) < 4
