"""Try both sources of a signal before the first update, and follow the one that moves the reward more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlr_core.common.distributed import Alone
from rlr_core.common.pending import Pending
from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.diffusion.rollout import rollout
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch, GradientEstimate
from rlr_core.methods.adaptive import Adaptive
from rlr_core.methods.awm import Awm
from rlr_core.methods.base import Draw, Method

TRIAL = 1_000_000_000
"""The number of a trial's first update: its batches are nobody else's."""
TRIAL_UPDATES = 6
PROBES = 32
"""At least how many pictures tell what a trial has brought."""
SURE = 2.0
"""Standard errors by which the reward's gradient must be ahead to be followed."""
WITH_GRADIENT = 2.5
"""What an evaluation of the denoiser with its way back costs, in plain evaluations."""


class Auto(Method):
    """A reward tells which of a model's pictures are better, and awm learns from that. Where it can be
    differentiated it also tells how each would become better, and adaptive goes back through the sampler for
    that. Which of them leads further depends on the reward: the gradient of a smooth one, such as a color,
    moves every picture at once; that of a network that judges what a picture shows points to whatever this
    network looks at, and comparing pictures leads further.

    So each gets a few updates from the same start, and the same pictures tell by how much the reward rose
    for what it cost. The run goes on from the better trial's weights. Without a gradient there is nothing to
    try, and nothing is spent."""

    name = "auto"
    summary = "awm or adaptive, whichever moves the reward further in a short trial of both"
    when = "the default, for any reward"
    needs_gradient = "used"

    def __init__(self, problem: Problem, options: MethodConfig):
        super().__init__(problem, options)
        regression = Awm(problem, options)
        self.chain = regression.chain
        self.parents: list[Method] = [regression]
        if problem.pathwise:
            self.parents.append(Adaptive(problem, options))
        self.follows = 0
        """Place of the parent that updates are left to."""
        self.tried = len(self.parents) == 1

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        for parent in (Awm, Adaptive):
            parent.check(options, sampler, batch)

    @property
    def followed(self) -> Method:
        return self.parents[self.follows]

    # --- the trial ---

    def prepare(self, draw: Draw) -> None:
        if self.tried:
            return
        start = self._parameters()
        try:
            before = self._probe(draw)
            pictures, gradient = [self._trial(parent, draw, before, start) for parent in self.parents]
        except BaseException:
            self._install(start)
            raise
        ahead = gradient.rise / gradient.cost - pictures.rise / pictures.cost
        error = float(ahead.std()) / len(ahead) ** 0.5
        self.follows = int(float(ahead.mean()) > SURE * error)
        self._install((pictures, gradient)[self.follows].parameters)
        self.tried = True

    def _trial(self, parent: Method, draw: Draw, before: Tensor, start: list[Tensor]) -> _Trial:
        """A few updates of one parent from `start`. before: the probes' rewards there."""
        self._install(start)
        parent.prepare(draw)
        parameters = self.problem.parameters
        optimizer = torch.optim.Adam(parameters, lr=self.problem.learning_rate, betas=(0.9, 0.99))
        counts = self.chain.evaluations
        forward, backward = counts.forward, counts.backward
        for step in range(TRIAL, TRIAL + TRIAL_UPDATES):
            samples = parent.collect(draw(step, parent.per_prompt), step)
            for estimate in parent.gradients(samples):
                for parameter, direction in zip(parameters, estimate.gradient, strict=True):
                    parameter.grad = -direction.to(parameter.dtype)
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        cost = counts.forward - forward + WITH_GRADIENT * (counts.backward - backward)
        return _Trial(self._probe(draw) - before, cost, self._parameters())

    @torch.no_grad()
    def _probe(self, draw: Draw) -> Tensor:
        """The rewards [n] of pictures that are the same in every probe, but for the weights. float64."""
        world, rewards = self.problem.world or Alone(), []
        while sum(map(len, rewards)) < PROBES:
            batch = draw(TRIAL - 1 - len(rewards), 1)
            part = torch.zeros(batch.size, dtype=torch.float64)
            own = torch.as_tensor(list(world.slice(batch.size)), dtype=torch.long)
            for index in own.split(self.problem.micro_batch):
                final = rollout(
                    self.chain, batch.noise(index), batch.conditioning.select(index), keep=False
                ).final
                part[index] = self.problem.score(final, batch.texts(index), False).reward.double().cpu()
            rewards.append(world.sum(part))
        return torch.cat(rewards)

    def _parameters(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.problem.parameters]

    @torch.no_grad()
    def _install(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_([parameter.data for parameter in self.problem.parameters], list(values))

    # --- everything else is left to the parent that is followed ---

    @property
    def per_prompt(self) -> int | None:
        return self.followed.per_prompt

    def collect(self, batch: Batch, step: int) -> Any | Pending:
        return self.followed.collect(batch, step)

    def gradients(self, samples: Any) -> Iterator[GradientEstimate]:
        yield from self.followed.gradients(samples)

    def rewards(self, samples: Any) -> Tensor:
        return self.followed.rewards(samples)

    def keep_graphs(self, steps: int) -> None:
        for parent in self.parents:
            parent.keep_graphs(steps)

    def metrics(self) -> dict[str, float]:
        return self.followed.metrics() | {"signal/gradient": float(self.follows)}

    def state_dict(self) -> dict[str, Tensor]:
        state = {"choice": torch.tensor([int(self.tried), self.follows])}
        for parent in self.parents:
            state |= {f"{parent.name}.{name}": value for name, value in parent.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        tried, self.follows = state["choice"].tolist()
        self.tried = bool(tried)
        for parent in self.parents:
            beginning = f"{parent.name}."
            parent.load_state_dict(
                {name[len(beginning) :]: v for name, v in state.items() if name.startswith(beginning)}
            )


class _Trial(NamedTuple):
    rise: Tensor
    """Of each probe's reward [n]."""
    cost: float
    """In plain evaluations of the denoiser."""
    parameters: list[Tensor]
    """Where it led."""
