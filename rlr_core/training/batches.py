"""The batches that a run trains on: prompts dealt out, conditioning and noise of every update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rlr_core.common.random_streams import seeds, stream
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.rollout import Noise
from rlr_core.gradients.samples import Batch


class Batches:
    """A function of the seed and the update alone, the same for every process and for a resumed run."""

    def __init__(
        self,
        book: PromptBook,
        prompts: Sequence[int],
        size: int,
        per_prompt: int,
        seed: int,
        latent_shape: Sequence[int],
    ):
        """prompts: numbers in the book; size: trajectories of a batch, per_prompt of them of one prompt."""
        self.book, self.prompts = book, list(prompts)
        self.size, self.per_prompt, self.seed = size, per_prompt, seed
        self.latent_shape = tuple(latent_shape)

    def draw(self, step: int, per_prompt: int | None = None) -> Batch:
        """The batch of update `step`; -1 is the calibration's. per_prompt: in place of the run's."""
        count = per_prompt or self.per_prompt
        dealt = deal(len(self.prompts), self.size // count, step + 1, self.seed)
        rows = [self.prompts[place] for place in dealt for _ in range(count)]
        noise_seeds = seeds(self.seed, "noise", self.size, step)

        def noise(index: Tensor) -> Noise:
            return Noise(noise_seeds[index.numpy()].tolist(), self.latent_shape, self.book.device)

        return Batch(noise, self.book.conditioning(rows), torch.tensor(rows), self.book.texts(rows))


def deal(count: int, per_update: int, step: int, seed: int) -> list[int]:
    """Which of `count` prompts update `step` (from 0) takes: shuffled epochs, none skipped or repeated."""
    places = [divmod(position, count) for position in range(step * per_update, (step + 1) * per_update)]
    return [_epoch(seed, epoch, count)[place] for epoch, place in places]


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, count: int) -> list[int]:
    return stream(seed, "prompts", epoch).permutation(count).tolist()
