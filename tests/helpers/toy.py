"""Small chains whose gradient is known: in closed form, or from autograd through the whole unrolled chain."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from rlr_core.config import MethodConfig
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch, Scores
from rlr_core.methods import method_class

D = 3


class ToyChain:
    """x_{t-1} = x_t + gain * f(A_t x_t + B_t theta) + sigma_t z, with f the identity or tanh."""

    def __init__(self, sigmas: list[float], *, nonlinear: bool = True, gain: float = 0.4, seed: int = 0):
        """sigmas: for t = 1..T."""
        rng = torch.Generator().manual_seed(seed)
        self.T = len(sigmas)
        self.sigmas, self.nonlinear, self.gain = sigmas, nonlinear, gain
        self.A = torch.randn(self.T, D, D, generator=rng) * 0.7
        self.B = torch.randn(self.T, D, D, generator=rng)
        self.theta = torch.randn(D, generator=rng) * 0.3
        self.offset = torch.zeros(D)
        self.target = torch.randn(D, generator=rng)
        self.peak = 0

    def sigma(self, t: int) -> float:
        return self.sigmas[t - 1]

    def mean(self, x: Tensor, t: int, conditioning) -> Tensor:
        drive = x @ self.A[t - 1].T + (self.theta + self.offset) @ self.B[t - 1].T
        return x + self.gain * (torch.tanh(drive) if self.nonlinear else drive)

    def reward(self, x0: Tensor) -> Tensor:
        return -(x0 - self.target).square().sum(1) + 0.5 * torch.cos(2 * x0[:, 0])

    def true_gradient(self, samples: int, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Gradient of E[R] and its standard error, by autograd through the unrolled chain."""
        rng = torch.Generator().manual_seed(seed)
        blocks = []
        for _ in range(64):
            theta = self.theta.clone().requires_grad_()
            x = torch.randn(samples // 64, D, generator=rng)
            for t in range(self.T, 0, -1):
                drive = x @ self.A[t - 1].T + theta @ self.B[t - 1].T
                x = x + self.gain * (torch.tanh(drive) if self.nonlinear else drive)
                x = x + self.sigma(t) * torch.randn(x.shape, generator=rng)
            blocks.append(torch.autograd.grad(self.reward(x).mean(), theta)[0])
        blocks = torch.stack(blocks)
        return blocks.mean(0), blocks.std(0) / 8


class BlockNoise:
    """Noise of a block of trajectories from one generator: fast, and the same when asked again."""

    def __init__(self, step: int, index: Tensor):
        self.seed, self.count = (step * 1000 + int(index[0])) * 100, len(index)

    def at(self, t: int) -> Tensor:
        return torch.randn(self.count, D, generator=torch.Generator().manual_seed(self.seed + t))

    def initial(self) -> Tensor:
        return self.at(0)


def nothing(count: int) -> Conditioning:
    """Conditioning of a chain that ignores it."""
    return Conditioning({}, torch.zeros(count, 1, dtype=torch.long))


def estimates(
    chain: ToyChain,
    options: MethodConfig,
    *,
    updates: int,
    batch: int = 256,
    black_box: bool = False,
    surrogate=None,
    groups: int = 4,
    base=nullcontext,
) -> Tensor:
    """`updates` independent gradient estimates [updates, D] with fixed parameters. base: context in which the
    chain is the base model's."""

    def score(x0: Tensor, prompts, gradient: bool) -> Scores:
        if black_box and surrogate is None:
            return Scores(chain.reward(x0))
        with torch.enable_grad():
            leaf = x0.clone().requires_grad_()
            value = surrogate(leaf) if black_box else chain.reward(leaf)
            (of_latents,) = torch.autograd.grad(value.sum(), leaf)
        if black_box:
            return Scores(chain.reward(x0), of_latents, value.detach())
        return Scores(value.detach(), of_latents if gradient else None)

    chain.theta.requires_grad_(True)
    problem = Problem(
        chain,
        [chain.theta],
        score,
        pathwise=not black_box or surrogate is not None,
        differentiable=not black_box,
        micro_batch=batch,
        base=base,
    )
    method = method_class(options.name)(problem, options)

    def draw(step: int, per_prompt: int | None = None) -> Batch:
        return Batch(
            lambda index: BlockNoise(step + 10, index),
            nothing(batch),
            torch.arange(batch) % groups,
            [""] * batch,
        )

    method.prepare(draw)
    gradients = []
    for step in range(updates):
        (estimate, *_) = method.gradients(method.collect(draw(step), step))
        gradients.append(estimate.gradient[0])
    chain.theta.requires_grad_(False)
    return torch.stack(gradients)


def z_scores(found: Tensor, truth: Tensor, truth_error: Tensor | float = 0.0) -> Tensor:
    """(mean - truth) / standard error, per coordinate [D]."""
    error = (found.var(0) / len(found) + torch.as_tensor(truth_error) ** 2).sqrt()
    return (found.mean(0) - truth) / error
