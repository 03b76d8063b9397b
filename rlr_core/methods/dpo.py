"""Diffusion-DPO: of two pictures of a prompt, the better one is to gain on the worse one, beside the base."""

from __future__ import annotations

import torch
from torch import Tensor

from rlr_core.common.pending import Pending
from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.errors import UserError
from rlr_core.gradients.samples import Batch
from rlr_core.methods.regression import Row, Seen
from rlr_core.methods.sample_buffer import Lesson, Samples, blocks_of


class Dpo(Row):
    """Wallace et al. 2023, arXiv 2311.12908: with l the denoising loss at one noise level and one noise for
    both, l_ref the base model's, and D = (l - l_ref)(preferred) - (l - l_ref)(rejected),

        loss = -log sigmoid(-(beta / 2) D) .

    Pairs are the best and the worst picture of each prompt."""

    name = "dpo"
    summary = "the best against the worst picture of each prompt (Diffusion-DPO, online)"
    uses_base = True

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        super().check(options, sampler, batch)
        if options.advantage == "running_mean":
            raise UserError(
                "Method 'dpo' compares pictures of one prompt; method.advantage cannot be running_mean."
            )

    def collect(self, batch: Batch, step: int) -> Samples | Pending:
        check_pairs(batch.groups, self.name)
        return super().collect(batch, step)

    def lesson(self, samples: Samples, inner: int) -> Lesson:
        pairs = best_and_worst(samples.rewards[0], samples.batch.groups)
        rows = pairs.flatten()
        count = len(pairs)
        return Lesson(
            samples.latents[rows.to(samples.latents.device)],
            samples.batch.conditioning.select(rows),
            torch.tensor([1.0, -1.0]).repeat(count),
            list(torch.arange(2 * count).split(2)),
            torch.arange(count).repeat_interleave(2),
            unit=2,
        )

    def coefficients(self, seen: Seen) -> tuple[Tensor, None, None]:
        assert seen.base is not None, "the base model's output is asked for"
        beta = self.options.dpo_beta
        gain = seen.loss(seen.output) - seen.loss(seen.base)
        margin = gain[0::2] - gain[1::2]
        pull = (beta * torch.sigmoid(beta / 2 * margin)).repeat_interleave(2)
        # a mean over rows is half of the mean over pairs
        return 2 * seen.values * pull / seen.elements, None, None


def check_pairs(groups: Tensor, method: str) -> None:
    """Raise UserError where no prompt has two samples. groups: [B]."""
    if len(groups.unique()) == len(groups):
        raise UserError(
            f"Method {method!r} compares pictures of one prompt and every prompt has one: set "
            f"samples_per_prompt to 2 or more."
        )


def best_and_worst(rewards: Tensor, groups: Tensor) -> Tensor:
    """Places [P, 2] of the best and the worst sample of each group, where they differ; of [B] each."""
    pairs = [
        (members[rewards[members].argmax()], members[rewards[members].argmin()])
        for members in blocks_of(groups)
        if rewards[members].max() > rewards[members].min()
    ]
    return torch.tensor([[int(good), int(bad)] for good, bad in pairs], dtype=torch.long).reshape(-1, 2)
