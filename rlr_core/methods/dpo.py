"""Diffusion-DPO: of two pictures of a prompt, the better one is to gain on the worse one, beside the base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlr_core.common.pending import Pending
from rlr_core.common.random_streams import stream
from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.diffusion.rollout import Noise
from rlr_core.errors import UserError
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch
from rlr_core.methods.pairs import Pairs, load_pairs
from rlr_core.methods.regression import Row, Seen
from rlr_core.methods.sample_buffer import Lesson, Samples, blocks_of


class Dpo(Row):
    """Wallace et al. 2023, arXiv 2311.12908: with l the denoising loss at one noise level and one noise for
    both, l_ref the base model's, and D = (l - l_ref)(preferred) - (l - l_ref)(rejected),

        loss = -log sigmoid(-(beta / 2) D) .

    Pairs are the best and the worst picture of each prompt, or come from a file; nothing is sampled or scored
    then, and an update takes half as many of them as it has pictures."""

    name = "dpo"
    summary = "prefers the better of two pictures of a prompt, from the reward or from a file (Diffusion-DPO)"
    when = "rewards that only rank pictures, or pairs that you have"
    uses_base = True

    def __init__(self, problem: Problem, options: MethodConfig):
        super().__init__(problem, options)
        self.pairs = None if options.pairs is None else load_pairs(options.pairs)
        if self.pairs is not None:
            self._numbers = _numbers(self.pairs.prompts, problem.prompts, options.pairs)

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        super().check(options, sampler, batch)
        if options.advantage == "running_mean":
            raise UserError(
                "Method 'dpo' compares pictures of one prompt; method.advantage cannot be running_mean."
            )

    def collect(self, batch: Batch, step: int) -> Samples | Pending:
        if self.pairs is not None:
            return self._from_file(self.pairs, batch.size // 2, step)
        check_pairs(batch.groups, self.name)
        return super().collect(batch, step)

    def _from_file(self, pairs: Pairs, count: int, step: int) -> Samples:
        """The update's pairs, in shuffled epochs: a preferred picture scores 1, a rejected one 0."""
        assert self.problem.conditioning is not None, "prompts have numbers, or were refused"
        self.snapshot.follow(0)
        chosen = torch.tensor(_dealt(len(pairs.prompts), count, step, self.problem.seed))
        latents = []
        for some in chosen.split(max(1, self.problem.micro_batch // 2)):
            pictures = torch.stack([pairs.preferred[some], pairs.rejected[some]], 1).flatten(0, 1)
            latents.append(self.chain.model.encode(pictures.float() / 255))
        numbers = self._numbers[chosen].repeat_interleave(2)
        texts = [pairs.prompts[place] for place in chosen.tolist() for _ in range(2)]
        groups = torch.arange(count).repeat_interleave(2)  # a prompt may have several pairs
        batch = Batch(_no_noise, self.problem.conditioning(numbers), groups, texts)
        rewards = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(count)[None]
        return Samples(batch, torch.cat(latents), rewards, step)

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

    def coefficients(self, seen: Seen) -> tuple[Tensor, None]:
        assert seen.base is not None, "the base model's output is asked for"
        beta = self.options.dpo_beta
        gain = seen.loss(seen.output) - seen.loss(seen.base)
        margin = gain[0::2] - gain[1::2]
        pull = (beta * torch.sigmoid(beta / 2 * margin)).repeat_interleave(2)
        # a mean over rows is half of the mean over pairs
        return 2 * seen.values * pull / seen.elements, None


def _numbers(prompts: list[str], known: Sequence[str], path: str | None) -> Tensor:
    """The numbers [N] that the run's prompts have. Raises UserError where one is not among them."""
    places = {text: number for number, text in enumerate(known)}
    missing = [prompt for prompt in prompts if prompt not in places]
    if missing:
        raise UserError(
            f"The pairs in {path!r} are about {missing[0]!r}, which is not among the training prompts: add "
            f"it to prompts."
        )
    return torch.tensor([places[prompt] for prompt in prompts])


def _dealt(count: int, per_update: int, step: int, seed: int) -> list[int]:
    """Which of `count` pairs update `step` takes: shuffled epochs, none skipped or repeated."""
    places = [divmod(position, count) for position in range(step * per_update, (step + 1) * per_update)]
    orders = {epoch: stream(seed, "pairs", epoch).permutation(count) for epoch, _ in places}
    return [int(orders[epoch][place]) for epoch, place in places]


def _no_noise(index: Tensor) -> Noise:
    raise NotImplementedError("Pictures from a file are not sampled.")


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
