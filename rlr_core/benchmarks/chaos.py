"""Is the mixture as quiet as the better of what it mixes? Measured on small chains from calm to very chaotic.

    python -m rlr_core.benchmarks.chaos

A chain of 20 steps in 6 dimensions, x_{t-1} = x_t + gain tanh(A_t x_t + B_t theta) + 0.3 z: products of
its Jacobians shrink or grow mildly at small gains and explode at large ones. Its parameters stay where they
are; each method makes many independent estimates with what it remembers of earlier ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from rlr_core.config import MethodConfig
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch, Scores
from rlr_core.methods import method_class

STEPS, DIMENSIONS, SIGMA = 20, 6, 0.3
METHODS = {
    "full": MethodConfig("full"),
    "likelihood_ratio": MethodConfig("likelihood_ratio"),
    "adaptive": MethodConfig("adaptive", budget=1.0),
}
REMEMBERING = 50
"""First updates that only fill the memory."""


class GainChain:
    """A chain with one knob for how fast neighboring trajectories part."""

    T = STEPS

    def __init__(self, gain: float, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        self.gain = gain
        self.A = torch.randn(STEPS, DIMENSIONS, DIMENSIONS, generator=rng) / DIMENSIONS**0.5
        self.B = torch.randn(STEPS, DIMENSIONS, DIMENSIONS, generator=rng) / DIMENSIONS**0.5
        self.target = torch.randn(DIMENSIONS, generator=rng)
        self.theta = (0.3 * torch.randn(DIMENSIONS, generator=rng)).requires_grad_()

    def sigma(self, t: int) -> float:
        return SIGMA

    def mean(self, x: Tensor, t: int, conditioning: Conditioning) -> Tensor:
        return x + self.gain * torch.tanh(x @ self.A[t - 1].T + self.theta @ self.B[t - 1].T)

    def score(self, x0: Tensor, prompts: Sequence[str], gradient: bool) -> Scores:
        """A reward that is bounded and has a slope everywhere, so that explosions are the chain's own."""
        distance = x0 - self.target
        return Scores(torch.cos(distance).mean(1), -torch.sin(distance) / DIMENSIONS)


class _Noise:
    def __init__(self, seed: int, index: Tensor):
        self.seed, self.index = seed, index

    def initial(self) -> Tensor:
        return self.at(0)

    def at(self, t: int) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed * (STEPS + 1) + t)
        return torch.randn(int(self.index.max()) + 1, DIMENSIONS, generator=rng)[self.index]


def noise(gain: float, method: MethodConfig, trajectories: int, updates: int) -> float:
    """Root-mean-square distance of an update's estimate from the mean of all."""
    chain = GainChain(gain)
    problem = Problem(chain, [chain.theta], chain.score, pathwise=True)
    learner = method_class(method.name)(problem, method)
    nothing = Conditioning({}, torch.zeros(trajectories, 1, dtype=torch.long))

    def draw(step: int, per_prompt: int | None = None) -> Batch:
        seed = step + 2
        groups = torch.zeros(trajectories, dtype=torch.long)
        return Batch(lambda index: _Noise(seed, index), nothing, groups, [""] * trajectories)  # pyright: ignore[reportArgumentType]

    learner.prepare(draw)
    estimates = []
    for step in range(REMEMBERING + updates):
        (estimate,) = learner.gradients(learner.collect(draw(step), step))
        estimates.append(estimate.gradient[0])
    return float(torch.stack(estimates[REMEMBERING:]).double().var(0).sum().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlr_core.benchmarks.chaos", description=__doc__)
    parser.add_argument("--gains", nargs="*", type=float, default=[0.2, 1, 2, 4, 8], metavar="G")
    parser.add_argument("--trajectories", nargs="*", type=int, default=[16, 64], metavar="N")
    parser.add_argument("--updates", type=int, default=1000, metavar="N", help="estimates of each method")
    arguments = parser.parse_args()
    print("gain  trajectories", *(f"{name:>16}" for name in METHODS), "  adaptive over the better parent")
    for gain in arguments.gains:
        for trajectories in arguments.trajectories:
            found = {
                name: noise(gain, method, trajectories, arguments.updates) for name, method in METHODS.items()
            }
            ratio = found["adaptive"] / min(found["full"], found["likelihood_ratio"])
            figures = " ".join(f"{value:16.3g}" for value in found.values())
            print(f"{gain:4g}  {trajectories:12d} {figures} {ratio:33.2f}", flush=True)


if __name__ == "__main__":
    main()
