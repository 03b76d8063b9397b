"""The prompts of a run: read, staged, encoded once, and dealt out to batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.rollout import Noise
from rlr_core.gradients.estimator import Batch


class Batches:
    """The batches that a run trains on: prompts, conditioning and noise of every update.

    A function of the seed and the update alone, the same for every process and for a resumed run.
    """

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
        self._chosen: list[int] = []

    def draw(self, step: int) -> Batch:
        """The batch of update `step`; -1 is the calibration's."""
        dealt = deal(len(self.prompts), self.size // self.per_prompt, step + 1, self.seed)
        self._chosen = [self.prompts[place] for place in dealt for _ in range(self.per_prompt)]
        seeds = np.random.SeedSequence([self.seed, 3, step + 1]).generate_state(self.size, np.uint64)

        def noise(index: Tensor) -> Noise:
            return Noise(seeds[index.numpy()], self.latent_shape, self.book.device)

        return Batch(noise, self.book.conditioning(self._chosen), torch.tensor(self._chosen))

    def texts(self, index: Tensor) -> list[str]:
        """What the reward is asked about, for trajectories of the batch drawn last."""
        return self.book.texts([self._chosen[i] for i in index.tolist()])


def deal(count: int, per_update: int, step: int, seed: int) -> list[int]:
    """Which of `count` prompts update `step` (from 0) takes: shuffled epochs, none skipped or repeated."""
    chosen = []
    for position in range(step * per_update, (step + 1) * per_update):
        epoch, place = divmod(position, count)
        chosen.append(int(np.random.default_rng([seed, 4, epoch]).permutation(count)[place]))
    return chosen
