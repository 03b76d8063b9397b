"""The chain: a model and a sampler's steps, as a Gaussian policy over latents.

Steps are counted as in the paper, down to the picture: t = T acts on pure noise, t = 1 gives x_0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.kernels import Step
from rlr_core.diffusion.losses import share_of
from rlr_core.diffusion.models.base import DiffusionModel, NoiseLevel


class ChainLike(Protocol):
    """What rollouts and gradients need of a chain."""

    @property
    def T(self) -> int: ...

    def sigma(self, t: int) -> float: ...

    def mean(self, x: Tensor, t: int, conditioning: Conditioning) -> Tensor: ...


class Chain:
    """x_{t-1} = mu(x_t, t, c_t) + sigma_t z_t for one model, one sampler and one guidance scale."""

    def __init__(self, model: DiffusionModel, steps: Sequence[Step], guidance: float = 1.0):
        """steps: T of them, noisiest first, as `model.schedule` gives them."""
        if len(steps) < 2:
            raise ValueError(f"A chain needs at least 2 steps, not {len(steps)}.")
        self.model = model
        self.steps = tuple(steps)
        self.guidance = guidance
        self.evaluations = EvaluationCounts()
        self.on_evaluation: Callable[[], None] | None = None
        """Called before every evaluation of the denoiser; may raise to stop there."""
        self.base_steps = 0
        """How many last steps, 1..base_steps, are the base model's, without the adapter."""
        self.base: Callable[[], AbstractContextManager] = nullcontext
        """Context in which the model is the base model."""

    @property
    def T(self) -> int:
        return len(self.steps)

    @property
    def guided(self) -> bool:
        """Whether a step evaluates the network twice."""
        return self.guidance != 1.0 and self.model.guidance_kind == "cfg"

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
        step = self.step(t)
        with self.base() if t <= self.base_steps else nullcontext():
            output = self._output(x, step.timestep, conditioning, t, self.T, self.guided)
        return step.a * x + step.b * output

    # --- the forward process of training, for methods that learn from samples ---

    def share(self, t: int) -> float:
        """Where x_t, which step t acts on, lies in the range of the model's training: 0 picture, 1 noise."""
        return share_of(self.model.noise_level, self.step(t).timestep)

    def noise_level(self, share: float) -> NoiseLevel:
        """The forward process at a share of that range."""
        return self.model.noise_level(share)

    def predict(self, x: Tensor, share: float, conditioning: Conditioning, guided: bool = False) -> Tensor:
        """The network's output [B, ...] for latents at a share of the training range, float32.

        guided: with guidance, as the sampler sees it, where there is any.
        """
        timestep = self.noise_level(share).timestep
        return self._output(x, timestep, conditioning, share, 1.0, guided and self.guided)

    def _output(
        self, x: Tensor, timestep: float, conditioning: Conditioning, t: float, T: float, guided: bool
    ) -> Tensor:
        if self.on_evaluation is not None:
            self.on_evaluation()
        self.evaluations.add(x.shape[0] * (2 if guided else 1))
        rows = conditioning.at(t, T, guided)
        if not guided:
            return self.model.denoise(x, timestep, rows)
        without, with_prompt = self.model.denoise(torch.cat([x, x]), timestep, rows).chunk(2)
        return self.model.guide(without, with_prompt, self.guidance)


@dataclass
class EvaluationCounts:
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
