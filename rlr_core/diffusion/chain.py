"""The chain: a model, a sampler's steps, and trajectories drawn from them without a graph.

Steps are counted as in the paper, down to the picture: t = T acts on pure noise, t = 1 gives x_0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlr_core.diffusion.kernels import Step
from rlr_core.diffusion.models.base import DiffusionModel, Rows


class Chain:
    """x_{t-1} = mu(x_t, t, c_t) + sigma_t z_t for one model, one sampler and one guidance scale.

    The gradients room needs no more than this of a chain: T, sigma(t) and mean(x, t, conditioning).
    """

    def __init__(self, model: DiffusionModel, steps: Sequence[Step], guidance: float = 1.0):
        """steps: T of them, noisiest first, as `model.schedule` gives them."""
        if len(steps) < 2:
            raise ValueError(f"A chain needs at least 2 steps, not {len(steps)}.")
        self.model = model
        self.steps = tuple(steps)
        self.guidance = guidance
        self.evaluations = Evaluations()
        self.on_evaluation: Callable[[], None] | None = None
        """Called before every evaluation of the denoiser; may raise to stop there."""

    @property
    def T(self) -> int:
        return len(self.steps)

    def step(self, t: int) -> Step:
        """The sampler's step t, 1..T."""
        if not 1 <= t <= self.T:
            raise IndexError(f"Step {t} is outside 1..{self.T}.")
        return self.steps[self.T - t]

    def sigma(self, t: int) -> float:
        """Standard deviation of the noise that step t adds."""
        return self.step(t).sigma

    def mean(self, x: Tensor, t: int, conditioning: Conditioning) -> Tensor:
        """mu(x_t, t, c_t), float32, shape of x [B, ...]; differentiable in x and in the adapter."""
        if self.on_evaluation is not None:
            self.on_evaluation()
        step = self.step(t)
        guided = self.guidance != 1.0
        self.evaluations.add(x.shape[0] * (2 if guided else 1))
        rows = conditioning.at(t, self.T, guided)
        if guided:
            without, with_prompt = self.model.denoise(torch.cat([x, x]), step.timestep, rows).chunk(2)
            output = without + self.guidance * (with_prompt - without)
        else:
            output = self.model.denoise(x, step.timestep, rows)
        return step.a * x + step.b * output


@dataclass
class Evaluations:
    """Denoiser evaluations so far, in samples; guidance counts twice."""

    forward: int = 0
    """Forward passes without a graph."""
    backward: int = 0
    """Forward passes with a graph, each followed by a backward pass."""

    def add(self, samples: int) -> None:
        if torch.is_grad_enabled():
            self.backward += samples
        else:
            self.forward += samples


@dataclass
class Conditioning:
    """What the denoiser is told: encoded prompts, and which one each sample follows in each stage.

    Several stages make a prompt that changes on the way from noise to picture (DCoT, math.md section 8).
    """

    table: Rows
    """Encoded prompts [P, ...]; row 0 is the negative prompt."""
    rows: Tensor
    """Row of the table for each sample and stage, [B, S], stages in sampling order (coarse first)."""
    boundaries: tuple[float, ...] = ()
    """Where stages change: S - 1 rising shares of the chain, counted from the noise."""

    def __post_init__(self) -> None:
        if len(self.boundaries) != self.rows.shape[1] - 1:
            raise ValueError(f"{self.rows.shape[1]} stages need {self.rows.shape[1] - 1} boundaries.")

    def stage(self, t: int, T: int) -> int:
        """Which stage step t of T lies in."""
        progress = (T - t) / T
        return sum(progress >= boundary - 1e-9 for boundary in self.boundaries)

    def at(self, t: int, T: int, guided: bool) -> Rows:
        """Rows for the batch at step t: [B, ...], or [2 B, ...] with the negative prompt first."""
        rows = self.rows[:, self.stage(t, T)]
        if guided:
            rows = torch.cat([torch.zeros_like(rows), rows])
        return {name: values[rows] for name, values in self.table.items()}

    def select(self, index: Tensor) -> Conditioning:
        """The conditioning of some of the samples. index: [N] integers."""
        return Conditioning(self.table, self.rows[index.to(self.rows.device)], self.boundaries)


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
        return torch.from_numpy(np.stack(draws)).to(self.device)

    @staticmethod
    def _generator(seed: int, t: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([seed, t], dtype=np.uint64)))


@dataclass
class Trajectory:
    """One batch of rollouts: the latents on the way and the noises, no graph."""

    latents: dict[int, Tensor]
    """x_t [B, ...] by t, float32; of a full rollout t = 0..T."""
    noises: dict[int, Tensor]
    """z_t [B, ...] by t, for the steps that have noise."""
    conditioning: Conditioning

    @property
    def final(self) -> Tensor:
        """The latent furthest towards the picture: x_0 of a full rollout."""
        return self.latents[min(self.latents)]


@torch.no_grad()
def rollout(
    chain: Chain,
    noise: Noise,
    conditioning: Conditioning,
    *,
    start: int | None = None,
    stop: int = 0,
    latents: Tensor | None = None,
    keep: bool = True,
    before_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """Sample from x_start (default x_T, pure noise) down to x_stop (default the picture), without autograd.

    latents: x_start [B, ...], where it is not the initial noise. keep: hold every latent and noise, as the
    walk needs them, or only the last latent. before_step: called with t ahead of each step.
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
