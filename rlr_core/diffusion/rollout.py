"""Trajectories: sampled from noise to picture, without autograd, with noise that depends on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlr_core.diffusion.chain import ChainLike
from rlr_core.diffusion.conditioning import Conditioning


class Noise:
    """Noise of every sample at every step, each from its own counter, so that no draw depends on another.

    A sample's noise is the same in any batch, on any device, and twins share it.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        """seeds: one per sample; shape: of one latent."""
        self.seeds = tuple(int(seed) for seed in seeds)
        self.shape = tuple(shape)
        self.device = torch.device(device)

    def initial(self) -> Tensor:
        """x_T, [B, ...]."""
        return self.at(0)

    def at(self, t: int) -> Tensor:
        """z_t, [B, ...]."""
        draws = [self._generator(seed, t).standard_normal(self.shape, np.float32) for seed in self.seeds]
        return torch.from_numpy(np.stack(draws)).to(self.device, non_blocking=True)  # no wait for the GPU

    @staticmethod
    def _generator(seed: int, t: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([seed, t], dtype=np.uint64)))


@dataclass
class Trajectory:
    """One batch of rollouts: the latents on the way and the noises."""

    latents: dict[int, Tensor]
    """x_t [B, ...] by t, float32; of a full rollout t = 0..T."""
    noises: dict[int, Tensor]
    """z_t [B, ...] by t, for the steps that have noise."""
    conditioning: Conditioning
    graphs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """x_t, a leaf, and the mean of step t with its graph, for steps that were asked to keep it."""

    def select(self, index: Tensor) -> Trajectory:
        """Some of the rollouts, without graphs. index: [N] integers."""
        places = index.to(self.final.device)
        latents = {t: x[places] for t, x in self.latents.items()}
        noises = {t: z[places] for t, z in self.noises.items()}
        return Trajectory(latents, noises, self.conditioning.select(index))

    @property
    def final(self) -> Tensor:
        """The latent furthest towards the picture: x_0 of a full rollout."""
        return self.latents[min(self.latents)]


@torch.no_grad()
def rollout(
    chain: ChainLike,
    noise: Noise,
    conditioning: Conditioning,
    *,
    start: int | None = None,
    stop: int = 0,
    latents: Tensor | None = None,
    keep: bool = True,
    before_step: Callable[[int], None] | None = None,
    graph_steps: Container[int] = (),
) -> Trajectory:
    """Sample from x_start (default x_T, pure noise) down to x_stop (default the picture), without autograd.

    latents: x_start [B, ...], where it is not the initial noise. keep: hold every latent and noise, as the
    walk needs them, or only the last latent. before_step: called with t ahead of each step. graph_steps:
    those whose evaluation keeps its graph, so that the walk need not repeat it; each takes the memory of a
    step, and the parameters must not change before they are used.
    """
    start = chain.T if start is None else start
    if not 0 <= stop < start <= chain.T:
        raise ValueError(f"A rollout goes down from at most {chain.T}; {start} to {stop} does not.")
    if latents is None and start != chain.T:
        raise ValueError(f"A rollout from step {start} of {chain.T} needs the latents it starts from.")
    x = noise.initial() if latents is None else latents
    trajectory = Trajectory({start: x}, {}, conditioning)
    for t in range(start, stop, -1):
        if before_step is not None:
            before_step(t)
        if t in graph_steps:
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                mean = chain.mean(leaf, t, conditioning)
            trajectory.graphs[t] = leaf, mean
            x = mean.detach()
        else:
            x = chain.mean(x, t, conditioning)
        sigma = chain.sigma(t)
        if sigma > 0:
            z = noise.at(t)
            x = x + sigma * z
            if keep:
                trajectory.noises[t] = z
        if not keep:
            trajectory.latents.clear()
        trajectory.latents[t - 1] = x
    return trajectory
