"""P-GRAFT: accept the state on the way to a good picture, and train the noisy part of the chain only."""

from __future__ import annotations

import math

from torch import Tensor

from rlr_core.config import MethodConfig
from rlr_core.diffusion.rollout import rollout
from rlr_core.errors import UserError
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch
from rlr_core.methods.graft import Graft
from rlr_core.methods.sample_buffer import Lesson, Samples


class PGraft(Graft):
    """arXiv 2510.02692: the reward of the picture accepts x_{N_I}, steps T..N_I + 1 learn its law, and the
    sampler runs them with the adapter and the rest without. Where reward is still uncertain given the state,
    less can be won, and the law is easier to learn: N_I is best somewhere in the middle."""

    name = "p_graft"
    summary = "GRAFT on the states at an intermediate step; the LoRA acts from the noise to there (P-GRAFT)"
    when = "rewards without a gradient: the first to try; the base model goes on drawing the details"

    def __init__(self, problem: Problem, options: MethodConfig):
        super().__init__(problem, options)
        chain = self.chain
        self.state_step = min(max(math.floor(options.accept_at * chain.T + 0.5), 1), chain.T - 1)
        """N_I: the state is what this step acts on."""
        self.divide()
        share = chain.share(self.state_step)
        self.level = chain.noise_level(share)
        low, high = self.range
        # not from the state's own level on: its target has no bound there, and a table of levels has no other
        nearest = share + (chain.share(self.state_step + 1) - share) / 10
        if nearest >= high:
            raise UserError(
                f"method.most_noise is {high:g} and the state that is accepted lies at {share:.2g}: "
                f"lower method.accept_at, or set method.most_noise to 1."
            )
        self.range = (max(nearest, low), high)

    def divide(self, whole: bool = False) -> None:
        """Leave the chain's last steps to the base model; none of them with `whole`."""
        self.chain.base_steps, self.chain.base = 0 if whole else self.state_step, self.problem.base

    def _roll_out(self, batch: Batch, index: Tensor) -> tuple[Tensor, Tensor]:
        noise, conditioning = batch.noise(index), batch.conditioning.select(index)
        state = rollout(self.chain, noise, conditioning, stop=self.state_step, keep=False).final
        final = rollout(
            self.chain, noise, conditioning, start=self.state_step, latents=state, keep=False
        ).final
        return state, final

    def lesson(self, samples: Samples, inner: int) -> Lesson:
        lesson = super().lesson(samples, inner)
        lesson.level = self.level
        return lesson
