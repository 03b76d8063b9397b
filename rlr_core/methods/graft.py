"""GRAFT: sample, accept the good ones, train on those as on any data."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rlr_core.common.pending import Pending
from rlr_core.common.random_streams import stream
from rlr_core.config import MethodConfig
from rlr_core.errors import UserError
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch, GradientEstimate
from rlr_core.methods.dpo import check_pairs
from rlr_core.methods.regression import Row, Seen
from rlr_core.methods.sample_buffer import Lesson, SampleBuffer, Samples, blocks_of

LEVEL_SHARED_BY = 4
"""How many accepted pictures are noised to one level: as many as may go through the network at once."""


class Graft(Row):
    """Generalized rejection sampling fine-tuning (arXiv 2510.02692, algorithm 1). What is accepted follows
    the law of the policy that sampled, tilted by a rising function of the reward; the model's own denoising
    loss on it moves the model there. Accepted pictures of earlier updates may stay in a buffer.

    The loss is that of the network without guidance. With it, no noise level has an output that is both what
    the sampler needs and a mean of pictures, so plain regression undoes the guidance, and the model with it.
    """

    name = "graft"
    summary = "trains on the best of the model's own pictures, as on any data (GRAFT)"
    when = "many pictures and few updates: nothing is pushed away"
    inner_steps = 4  # accepted pictures are kept, so that sampling is what an update costs

    def __init__(self, problem: Problem, options: MethodConfig):
        super().__init__(problem, options)
        self.buffer = SampleBuffer(options.buffer)
        if options.buffer and problem.conditioning is None:
            raise UserError(
                "A buffer needs prompts by number, and this problem has none: set method.buffer=0."
            )
        self._accepted = 0.0

    def _sampling_policy(self) -> AbstractContextManager:
        return self.problem.base() if self.options.sample_from == "base" else super()._sampling_policy()

    def collect(self, batch: Batch, step: int) -> Samples | Pending:
        if self.options.accept != "threshold":
            check_pairs(batch.groups, self.name)
        return super().collect(batch, step)

    def lesson(self, samples: Samples, inner: int) -> Lesson:
        groups, options = samples.batch.groups, self.options
        rows = accepted(samples.rewards[0], groups, options).nonzero().flatten()
        self._accepted = len(rows) / len(groups)
        latents, values = samples.latents[rows.to(samples.latents.device)], torch.ones(len(rows))
        conditioning, prompts = samples.batch.conditioning.select(rows), groups[rows]
        if options.buffer:
            if inner == 0:
                self.buffer.add(latents, prompts, values)
            rng = stream(self.problem.seed, "buffer", samples.step, inner)
            chosen = rng.permutation(len(self.buffer))[: samples.batch.size]
            rows = torch.from_numpy(chosen.copy())
            assert self.problem.conditioning is not None, "refused when the method was made"
            if len(rows) and self.buffer.latents is not None:
                latents, prompts = self.buffer.latents[rows.to(latents.device)], self.buffer.prompts[rows]
                conditioning, values = self.problem.conditioning(prompts), self.buffer.values[rows]
        places = torch.arange(len(prompts))
        return Lesson(latents, conditioning, values, list(places.split(LEVEL_SHARED_BY)), places)

    def coefficients(self, seen: Seen) -> tuple[Tensor, None]:
        return 2 * seen.values / seen.elements, None

    def _gradient(self, lesson: Lesson, step: int, inner: int) -> GradientEstimate:
        estimate = super()._gradient(lesson, step, inner)
        estimate.metrics["accepted"] = self._accepted
        return estimate

    def state_dict(self) -> dict[str, Tensor]:
        stored = {f"buffer.{name}": value for name, value in self.buffer.state_dict().items()}
        return super().state_dict() | stored

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        beginning = "buffer."
        stored = {name[len(beginning) :]: v for name, v in state.items() if name.startswith(beginning)}
        self.buffer.load_state_dict(stored, self.problem.parameters[0].device)


def accepted(rewards: Tensor, groups: Tensor, options: MethodConfig) -> Tensor:
    """[B] bool: which samples are accepted. rewards, groups: [B], groups of one prompt.

    Of N samples of a prompt with distribution function F of the reward, best_of_n tilts the law by
    N F^(N-1), top_k by the probability that fewer than K others are better, threshold cuts it off. Ties go
    to the earlier sample.
    """
    if options.accept == "threshold":
        return rewards >= options.accept_threshold
    count = 1 if options.accept == "best_of_n" else options.accept_count
    mask = torch.zeros(len(rewards), dtype=torch.bool)
    for members in blocks_of(groups):
        mask[members[rewards[members].argsort(descending=True, stable=True)[:count]]] = True
    return mask
