"""One bad gradient among many: what the optimizer makes of it."""

from __future__ import annotations

import torch

from rlr_core.config import OptimizerConfig
from rlr_core.training.optimizer import REMEMBERED_NORMS, AdapterOptimizer


def walk(gradients, **options) -> torch.Tensor:
    """Where steps along these gradients lead from 0."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    config = OptimizerConfig(
        **{"learning_rate": 1e-2, "warmup": 0, "max_grad_norm": 0.0, "max_grad_ratio": 1.0} | options
    )
    optimizer = AdapterOptimizer([parameter], config, len(gradients))
    for step, gradient in enumerate(gradients):
        optimizer.step([gradient], step)
    return parameter.detach()


def usual(count: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.ones(4) + 0.3 * torch.randn(4, generator=rng) for _ in range(count)]


def test_a_gradient_a_thousand_times_as_long_moves_no_further_than_a_usual_one():
    backwards = -1000 * torch.ones(4)
    spoiled = [*usual(20), backwards, *usual(20)]
    without = walk(usual(40))
    assert float((walk(spoiled) - without).norm()) < 0.15 * float(without.norm())
    assert float((walk(spoiled, max_grad_ratio=0.0) - without).norm()) > 0.5 * float(without.norm())


def test_the_limit_has_no_unit():
    gradients = [*usual(10), 50 * torch.ones(4), *usual(10)]
    large = walk([1e3 * gradient for gradient in gradients])
    assert torch.allclose(walk(gradients), large, rtol=1e-3)


def test_what_is_usual_is_remembered_by_a_saved_state():
    parameter = torch.nn.Parameter(torch.zeros(4))
    first = AdapterOptimizer([parameter], OptimizerConfig(), 100)
    for step, gradient in enumerate(usual(REMEMBERED_NORMS + 3)):
        first.step([gradient], step)
    second = AdapterOptimizer([torch.nn.Parameter(torch.zeros(4))], OptimizerConfig(), 100)
    second.load_state_dict(first.state_dict())
    assert list(second.norms) == list(first.norms) and len(second.norms) == REMEMBERED_NORMS
