"""The prompts of a run: read, staged, encoded once, and dealt out to batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlr_core.config import TrainConfig
from rlr_core.diffusion.chain import Conditioning, Noise
from rlr_core.diffusion.models.base import DiffusionModel, Rows
from rlr_core.errors import UserError
from rlr_core.gradients.estimator import Batch


@dataclass(frozen=True)
class Prompt:
    """What a reward is asked about, and what the denoiser is told in each stage, coarse to fine."""

    text: str
    stages: tuple[str, ...]


def read_prompts(source: Any) -> list[Prompt]:
    """Prompts from a list or from a file with one a line.

    An item is a string; a list of stages, coarse to fine, judged by its last; or a mapping with `prompt` (for
    the reward) and `stages`. All prompts of a run have the same number of stages. Raises UserError for an
    empty or unreadable source.
    """
    if isinstance(source, (str, Path)):
        return [Prompt(line, (line,)) for line in _lines(Path(source))]
    if not isinstance(source, Sequence) or not source:
        raise UserError(f"prompts must be a list of prompts or a file with one a line, not {source!r}.")
    prompts = [_prompt(item) for item in source]
    counts = {len(prompt.stages) for prompt in prompts}
    if len(counts) > 1:
        raise UserError(f"Prompts have different numbers of stages: {sorted(counts)}.")
    return prompts


def with_prompts_read(config: TrainConfig) -> TrainConfig:
    """The config with prompt files replaced by what is in them, so that a run does not hang on a file."""

    def read(source: Any) -> Any:
        return [prompt.text for prompt in read_prompts(source)] if isinstance(source, (str, Path)) else source

    evaluation = dataclasses.replace(config.evaluation, prompts=read(config.evaluation.prompts))
    return dataclasses.replace(config, prompts=read(config.prompts), evaluation=evaluation)


def _lines(path: Path) -> list[str]:
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read the prompt file {str(path)!r}: {getattr(error, 'strerror', None) or error}."
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"The prompt file {str(path)!r} is empty; write one prompt a line.")
    return lines


def _prompt(item: Any) -> Prompt:
    text, stages = None, item
    if isinstance(item, Prompt):
        return item
    if isinstance(item, Mapping):
        text, stages = item.get("prompt"), item.get("stages")
    stages = (stages,) if isinstance(stages, str) else stages
    if not isinstance(stages, Sequence) or not stages or not all(isinstance(s, str) for s in stages):
        raise UserError(f"{item!r} is not a prompt: expected a string or a list of stages, coarse to fine.")
    return Prompt(stages[-1] if text is None else str(text), tuple(stages))


class PromptBook:
    """Encoded prompts. The table lies in CPU memory; a batch takes along the few rows that it uses."""

    def __init__(
        self,
        model: DiffusionModel,
        prompts: Sequence[Prompt],
        negative: str = "",
        boundaries: Sequence[float] | None = None,
        encode_batch: int = 32,
    ):
        """boundaries: S - 1 rising shares of the chain, counted from the noise; None divides it evenly."""
        self.prompts = list(prompts)
        stages = len(self.prompts[0].stages)
        self.boundaries = tuple(boundaries or [i / stages for i in range(1, stages)])
        if len(self.boundaries) != stages - 1 or list(self.boundaries) != sorted(self.boundaries):
            raise UserError(
                f"sampler.stage_boundaries is {list(self.boundaries)}; prompts with {stages} stages need "
                f"{stages - 1} rising shares of the chain."
            )
        texts = list(dict.fromkeys([negative, *(text for p in self.prompts for text in p.stages)]))
        place = {text: row for row, text in enumerate(texts)}
        self.rows = torch.tensor([[place[text] for text in p.stages] for p in self.prompts])
        blocks = []
        with torch.no_grad():
            for start in range(0, len(texts), encode_batch):
                block = model.encode_prompts(texts[start : start + encode_batch])
                blocks.append({name: value.cpu() for name, value in block.items()})
        self.table: Rows = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
        self.device = model.device

    def texts(self, index: Sequence[int]) -> list[str]:
        """What the reward is asked about, for the prompts of the given numbers."""
        return [self.prompts[int(i)].text for i in index]

    def conditioning(self, index: Sequence[int] | Tensor) -> Conditioning:
        """Conditioning [N] on the device, for the prompts of the given numbers."""
        rows = self.rows[torch.as_tensor(index)]
        used, places = torch.unique(torch.cat([torch.zeros(1, dtype=torch.long), rows.flatten()]),
                                    return_inverse=True)  # fmt: skip
        table = {name: value[used].to(self.device) for name, value in self.table.items()}
        return Conditioning(table, places[1:].view_as(rows).to(self.device), self.boundaries)


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
