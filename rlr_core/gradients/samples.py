"""What passes between rolling out and differentiating: a batch, its rollouts, what the reward says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Noise, Trajectory
from rlr_core.gradients.plan import Plan


@dataclass
class Batch:
    """The trajectories of an update, over all processes."""

    noise: Callable[[Tensor], Noise]
    """Noise of some of them, by index [N]."""
    conditioning: Conditioning
    """Of all of them."""
    groups: Tensor
    """[B] numbers of prompts: samples of one prompt share one."""
    prompts: Sequence[str]
    """[B] what the reward is asked about."""

    @property
    def size(self) -> int:
        return len(self.groups)

    def texts(self, index: Tensor) -> list[str]:
        """The prompts of some of them, by index [N]."""
        places: list[int] = index.tolist()
        return [self.prompts[place] for place in places]


@dataclass
class Scores:
    """What the reward says about a batch of final latents."""

    reward: Tensor
    """[B]."""
    gradient: Tensor | None = None
    """dR/dx_0 [B, ...], or of the surrogate; None for a black box."""
    surrogate: Tensor | None = None
    """[B] value of the differentiable stand-in that `gradient` belongs to; None when it is the reward's."""


Score = Callable[[Tensor, Sequence[str], bool], Scores]
"""(x_0 [N, ...], prompts [N], whether a gradient is asked for) -> Scores. May raise Pending."""


@dataclass
class Rollout:
    """One micro-batch with its scores, waiting for the backward pass."""

    index: Tensor
    """[N] places in the batch."""
    twin: int
    """0, or 1 for the mirrored twins."""
    trajectory: Trajectory
    scores: Scores
    plan: Plan
    group: int
    """Which perturbation it belongs to."""


@dataclass
class Rollouts:
    """A whole update's rollouts on this process, and the rewards of all processes."""

    batch: Batch
    parts: list[Rollout]
    rewards: Tensor
    """[S, B] float64, S = 2 with twins."""
    surrogates: Tensor | None
    """[S, B] float64."""
    step: int


@dataclass
class GradientEstimate:
    """An estimate of the gradient of J, for ascent, averaged over the batch and over processes."""

    gradient: list[Tensor]
    """A float32 tensor per parameter."""
    metrics: dict[str, float]
    """What the method measured on the way, by metric name."""
