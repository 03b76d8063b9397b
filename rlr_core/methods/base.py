"""What a method is: it collects samples for an update, and gets gradient estimates out of them.

The trainer knows no more than `Method`. `WalkMethod` is what the methods that go back through the sampler
have in common: each of them is a plan of which steps are visited and how cotangents are mixed (math.md,
section 2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from rlr_core.common.pending import Pending
from rlr_core.common.random_streams import stream
from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.errors import UserError
from rlr_core.gradients.calibration import calibrate
from rlr_core.gradients.estimator import Estimator, Problem
from rlr_core.gradients.plan import Plan
from rlr_core.gradients.samples import Batch, GradientEstimate, Rollouts
from rlr_core.gradients.statistics import RunningStatistics


class Draw(Protocol):
    """Gives the batch of an update."""

    def __call__(self, step: int, per_prompt: int | None = None, /) -> Batch:
        """per_prompt: pictures of a prompt; None is the run's."""
        ...


CALIBRATION = -1
"""The update number of the batch that only measures."""
KL_EVERY = 10
"""Updates between two that measure how far the model is from the base, where no method asks for it."""


class Method(ABC):
    """How an update learns from a batch. A method is one file with a subclass, and one line in `METHODS`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """How it learns, as a part of a sentence; for `rlr list methods`."""
    when: ClassVar[str] = ""
    """When to take it, the same way."""
    needs_gradient: ClassVar[str] = "no"
    """Whether it asks for a differentiable reward: 'needed', 'used' where there is one, or 'no'."""
    bias: ClassVar[str] = "none"
    """'none', or where the bias of its gradient comes from."""

    def __init__(self, problem: Problem, options: MethodConfig):
        """Raises UserError where the problem is none that it can solve."""
        self.problem, self.options = problem, options
        if self.needs_gradient == "needed" and not problem.differentiable:
            raise UserError(
                f"Method {self.name!r} needs a differentiable reward and this one gives none: use auto, "
                f"which needs none."
            )

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        """Raise UserError where settings cannot work together; called before anything is loaded."""

    def prepare(self, draw: Draw) -> None:
        """Called before the first update is collected, and again when a run goes on."""

    @property
    def per_prompt(self) -> int | None:
        """How many pictures of a prompt its batches hold; None is as many as the run's settings say."""
        return None

    @abstractmethod
    def collect(self, batch: Batch, step: int) -> Any | Pending:
        """Sample and score a batch for update `step`; Pending when scores are still to come."""

    @abstractmethod
    def gradients(self, samples: Any) -> Iterator[GradientEstimate]:
        """Estimates of the gradient, one for each optimizer step of the update, each made when asked for,
        with the parameters as they are then. Metrics of later ones replace those of the same name."""

    def rewards(self, samples: Any) -> Tensor:
        """What the reward said of the samples, of all processes, any shape."""
        return samples.rewards

    def keep_graphs(self, steps: int) -> None:
        """There is memory to keep the graphs of this many last steps of an update's rollouts."""

    def unreachable_steps(self) -> int:
        """How many last sampler steps the reward cannot reach: they have no noise and it has no gradient."""
        return 0

    def metrics(self) -> dict[str, float]:
        """What it remembers, for metrics.jsonl."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """All that it remembers from update to update."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""


@dataclass
class PlanInputs:
    """What a plan is made from."""

    sigmas: list[float]
    """sigma_t for t = 1..T."""
    batch: int
    """Trajectories in the update, over all devices."""
    groups: np.ndarray
    """[batch] which perturbation each trajectory belongs to."""
    options: MethodConfig
    """The method's settings."""
    running: RunningStatistics
    """What earlier updates measured."""
    rng: np.random.Generator
    """The update's own random numbers, equal on every device."""
    pathwise: bool = True
    """Whether there is a gradient to start from: a differentiable reward or a surrogate."""

    @property
    def T(self) -> int:
        return len(self.sigmas)

    @property
    def steps(self) -> Tensor:
        """t as a column [T + 1, 1]."""
        return torch.arange(self.T + 1)[:, None]


class WalkMethod(Method):
    """A method that rolls out, scores, and goes back through the sampler as `plan` says."""

    needs_noise: ClassVar[bool] = False
    """Whether it cannot do without noisy steps."""
    needs_baseline: ClassVar[bool] = False
    """Whether rewards need a baseline."""
    compares: ClassVar[bool] = True
    """Whether it learns from how pictures of a prompt differ even where the reward has a gradient. What
    back-propagation learns from one differs more between prompts than within one: it takes each once."""
    calibrates: ClassVar[bool] = False
    """Whether the first update is preceded by a walk that only measures."""

    def __init__(self, problem: Problem, options: MethodConfig):
        super().__init__(problem, options)
        self.estimator = Estimator(
            problem, options, twins=self.perturbs(options), pathwise=self.needs_gradient != "no"
        )
        if not problem.pathwise and self.needs_baseline and not any(self.estimator.sigmas):
            raise UserError(
                "A reward without gradient learns from the sampler's noise and there is none: set "
                "sampler.eta above 0, or use zeroth_order."
            )

    @staticmethod
    @abstractmethod
    def plan(setting: PlanInputs) -> Plan:
        """Which steps are visited, with what weight, how cotangents are mixed, what is perturbed."""

    @classmethod
    def perturbs(cls, options: MethodConfig) -> bool:
        """Whether rollouts come in antithetic twins with perturbed parameters."""
        return False

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        if cls.needs_noise and sampler.eta == 0 and sampler.last_step_noise == 0:
            raise UserError(
                f"Method {cls.name!r} learns from the sampler's noise and sampler.eta is 0: set sampler.eta "
                f"above 0 (1 is DDPM), or choose full, truncated or zeroth_order."
            )
        if cls.needs_baseline and batch < 2 and options.advantage != "running_mean":
            raise UserError(
                "A batch of 1 has no baseline: raise batch, or set method.advantage=running_mean."
            )

    @classmethod
    def reads_norms(cls, options: MethodConfig) -> bool:
        """Whether plans are made from the lengths of gradients, which a calibration then measures too."""
        return False

    @property
    def per_prompt(self) -> int | None:
        return 1 if self.problem.differentiable and not self.compares else None

    def prepare(self, draw: Draw) -> None:
        norms = self.reads_norms(self.options)
        if (self.calibrates or norms) and not self.estimator.calibrated:
            samples = self.collect(draw(CALIBRATION, self.per_prompt), CALIBRATION)
            if not isinstance(samples, Pending):
                calibrate(self.estimator, samples, norms)

    def collect(self, batch: Batch, step: int) -> Rollouts | Pending:
        groups = self.estimator.perturbation_groups(batch.size)
        rng = stream(self.problem.seed, "plan", step)
        setting = PlanInputs(
            self.estimator.sigmas,
            batch.size,
            groups,
            self.options,
            self.estimator.running,
            rng,
            self.estimator.pathwise,
        )
        return self.estimator.roll_out(batch, step, self.plan(setting))

    def gradients(self, samples: Rollouts) -> Iterator[GradientEstimate]:
        estimate = self.estimator.gradient(samples)
        self.add_kl(estimate, samples)  # now: the step that follows moves the parameters
        yield estimate

    def add_kl(self, estimate: GradientEstimate, samples: Rollouts) -> None:
        """Say how far the model was from the base when it was last measured, which takes T evaluations."""
        if "kl" in estimate.metrics:
            return
        if samples.step % KL_EVERY == 1 or np.isnan(self.estimator.kl):
            self.estimator.kl = self.estimator.measure_kl(samples)
        estimate.metrics["kl"] = self.estimator.kl

    def keep_graphs(self, steps: int) -> None:
        self.problem.graph_steps = steps

    def unreachable_steps(self) -> int:
        if self.problem.differentiable and self.needs_gradient != "no":
            return 0
        sigmas = self.estimator.sigmas
        noisy = [t for t, sigma in enumerate(sigmas, start=1) if sigma > 0]
        return (noisy[0] if noisy else len(sigmas) + 1) - 1

    def state_dict(self) -> dict[str, Tensor]:
        return self.estimator.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.estimator.load_state_dict(state)
