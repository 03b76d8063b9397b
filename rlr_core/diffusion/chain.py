"""The chain: a model and a sampler's steps, as a Gaussian policy over latents.

Steps are counted as in the paper, down to the picture: t = T acts on pure noise, t = 1 gives x_0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.kernels import Step
from rlr_core.diffusion.models.base import DiffusionModel


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
        guided = self.guidance != 1.0 and self.model.guidance_kind == "cfg"
        self.evaluations.add(x.shape[0] * (2 if guided else 1))
        rows = conditioning.at(t, self.T, guided)
        if guided:
            without, with_prompt = self.model.denoise(torch.cat([x, x]), step.timestep, rows).chunk(2)
            output = without + self.guidance * (with_prompt - without)
        else:
            output = self.model.denoise(x, step.timestep, rows)
        return step.a * x + step.b * output


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
