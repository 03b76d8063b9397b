"""A few updates along the reward's gradient show whether to follow it, or to learn from comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlr_core.common.distributed import Alone
from rlr_core.common.pending import Pending
from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.diffusion.rollout import rollout
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch, GradientEstimate
from rlr_core.methods.adaptive import Adaptive
from rlr_core.methods.base import Draw, Method
from rlr_core.methods.p_graft import PGraft

TRIAL = 1_000_000_000
"""The number of the trial's first update: its batches are nobody else's."""
TRIAL_UPDATES = 5
PROBES = 32
"""At least how many pictures tell what the trial has brought."""
GROUPS = (4, 3, 2)
"""How many pictures of a prompt are compared where the settings ask for one: what divides the batch."""
SURE = 2.0
"""Standard errors above 0 from which on the rise of their reward is no chance."""


class Auto(Method):
    """A reward tells which of a model's pictures are better, and p_graft learns from that. Where it can be
    differentiated it also tells how each would become better, and adaptive goes back through the sampler for
    that. Which of them leads further depends on the reward. The gradient of a smooth one, such as a color or
    a CLIP score, moves every picture the same way at once, where comparisons take long. That of a network
    that judges what a picture shows pulls every picture somewhere else, up or down, and comparisons, which
    ask for nothing but better and worse, lead further.

    So adaptive gets a few updates first. If the reward of the same pictures has risen by more than chance,
    the run goes on from there; if not, the weights go back and p_graft takes over. Comparing the rise with
    that of a few updates of p_graft would tell nothing: they hardly show yet. Without a gradient nothing is
    tried."""

    name = "auto"
    summary = "adaptive where a short trial shows that the reward's gradient raises it, p_graft elsewhere"
    when = "the default: it finds out which kind of reward yours is"
    needs_gradient = "used"

    def __init__(self, problem: Problem, options: MethodConfig):
        super().__init__(problem, options)
        self.comparing = PGraft(problem, options)
        self.chain = self.comparing.chain
        self.parents: list[Method] = [self.comparing]
        if problem.pathwise:
            self.parents.append(Adaptive(problem, options))
        self.follows = 0
        """Place of the parent that updates are left to."""
        self.group: int | None = None
        """Pictures of a prompt that are compared; None is as many as the run's settings say."""
        self.tried = len(self.parents) == 1

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        for parent in (PGraft, Adaptive):
            parent.check(options, sampler, batch)

    @property
    def followed(self) -> Method:
        return self.parents[self.follows]

    # --- the trial ---

    def prepare(self, draw: Draw) -> None:
        groups = draw(TRIAL - 1).groups
        if len(groups.unique()) == len(groups):  # the settings suit a gradient, which takes each prompt once
            self.group = next((n for n in GROUPS if len(groups) % n == 0), len(groups))
        if self.tried:
            return
        parent = self.parents[1]
        start = [parameter.detach().clone() for parameter in self.problem.parameters]
        remembered = parent.state_dict()
        self.comparing.divide(whole=True)
        try:
            before = self._probe(draw)
            self._try(parent, draw)
            rise = self._probe(draw) - before
        except BaseException:  # a run that goes on tries again, from the same start
            self._install(start)
            parent.load_state_dict(remembered)
            self.comparing.divide()
            raise
        risen = float(rise.mean()) > SURE * float(rise.std()) / len(rise) ** 0.5
        if not risen:
            self._install(start)
        self._follow(int(risen))

    def _follow(self, place: int) -> None:
        self.tried, self.follows = True, place
        self.comparing.divide(whole=place != 0)

    def _try(self, parent: Method, draw: Draw) -> None:
        """A few updates with an optimizer that nothing else will know of."""
        parameters = self.problem.parameters
        optimizer = torch.optim.Adam(parameters, lr=self.problem.learning_rate, betas=(0.9, 0.99))
        parent.prepare(draw)
        for step in range(TRIAL, TRIAL + TRIAL_UPDATES):
            samples = parent.collect(draw(step, parent.per_prompt), step)
            for estimate in parent.gradients(samples):
                for parameter, direction in zip(parameters, estimate.gradient, strict=True):
                    parameter.grad = -direction.to(parameter.dtype)
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)

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

    @torch.no_grad()
    def _install(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_([parameter.data for parameter in self.problem.parameters], list(values))

    # --- everything else is left to the parent that is followed ---

    @property
    def per_prompt(self) -> int | None:
        return self.followed.per_prompt if self.follows else self.group

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
        tried, follows = state["choice"].tolist()
        if tried:
            self._follow(follows)
        for parent in self.parents:
            beginning = f"{parent.name}."
            parent.load_state_dict(
                {name[len(beginning) :]: v for name, v in state.items() if name.startswith(beginning)}
            )
