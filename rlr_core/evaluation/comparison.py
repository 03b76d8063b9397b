"""Base against LoRA, LoRAs against each other, or strengths of one, on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rlr_core.config import SamplerConfig
from rlr_core.errors import UserError
from rlr_core.evaluation import paired, sampling
from rlr_core.evaluation.measures import ConfidenceInterval, Evaluation, diversity
from rlr_core.lora.apply import apply_lora
from rlr_core.rewards import load_reward

if TYPE_CHECKING:
    from rlr_core.diffusion.models.base import DiffusionModel


class Variant(NamedTuple):
    """One of the things compared."""

    name: str
    lora: str | Path | None = None
    """None is the model as it is."""
    strength: float = 1.0


@dataclass
class Comparison:
    """Evaluations of the same prompts and seeds by name; the others are measured against the first."""

    evaluations: dict[str, Evaluation]

    @property
    def first(self) -> str:
        return next(iter(self.evaluations))

    @property
    def others(self) -> list[str]:
        return list(self.evaluations)[1:]

    @property
    def rewards(self) -> list[str]:
        return list(self.evaluations[self.first].scores)

    def win_rate(self, name: str, reward: str) -> ConfidenceInterval:
        """How often `name` beats the first, ties counting half."""
        return self._pairs(paired.win_rate, name, reward)

    def gain(self, name: str, reward: str) -> ConfidenceInterval:
        """How much higher than the first `name` scores on average."""
        return self._pairs(paired.mean_gain, name, reward)

    def _pairs(
        self, measure: Callable[..., ConfidenceInterval], name: str, reward: str
    ) -> ConfidenceInterval:
        before, after = self.evaluations[self.first], self.evaluations[name]
        return measure(before.scores[reward], after.scores[reward], before.prompts)


def compare(
    model: DiffusionModel,
    variants: Sequence[Variant],
    rewards: Mapping[str, Any],
    prompts: Sequence[Any],
    sampler: SamplerConfig | None = None,
    *,
    samples: int = 32,
    seed: int = 0,
    batch: int = 8,
    keep: int = 8,
    on_progress: Callable[[str], sampling.OnProgress] | None = None,
) -> Comparison:
    """Sample and score `samples` pictures of each variant, with the prompts and seeds of all.

    The model is left as it was found, also by an error. rewards: what `load_reward` takes, by the name that
    their scores get; on_progress: for the name of a variant, what is told how many pictures are done.
    Raises UserError for fewer than two variants, two of one name, and a LoRA that does not fit.
    """
    check_names([variant.name for variant in variants])
    loaded = {name: load_reward(reward) for name, reward in rewards.items()}
    evaluations = {}
    for variant in variants:
        adapter = None
        if variant.lora is not None:
            adapter = apply_lora(model, variant.lora, variant.strength)
        try:
            evaluations[variant.name] = sampling.evaluate(
                model, loaded, prompts, sampler, adapter=adapter, samples=samples, seed=seed, batch=batch,
                keep=keep, on_progress=None if on_progress is None else on_progress(variant.name),
            )  # fmt: skip
        finally:
            if adapter is not None:
                adapter.detach()
    return Comparison(evaluations)


@torch.no_grad()
def compare_pictures(
    pictures: Mapping[str, Tensor], rewards: Mapping[str, Any], prompts: Sequence[str], keep: int = 8
) -> Comparison:
    """The same for pictures at hand: by name, [N, 3, H, W] in [0, 1], picture i of each of prompt i.

    Raises UserError for fewer than two names or another number of pictures than of prompts.
    """
    check_names(list(pictures))
    prompts = list(prompts)
    loaded = {name: load_reward(reward) for name, reward in rewards.items()}
    for reward in loaded.values():
        reward.prepare(prompts)
    evaluations = {}
    for name, images in pictures.items():
        if len(images) != len(prompts) or not prompts:
            raise UserError(f"{name!r} has {len(images)} pictures for {len(prompts)} prompts.")
        rows = zip(images.split(1), prompts, strict=True)
        scores = [[r(image, [prompt]).cpu() for r in loaded.values()] for image, prompt in rows]
        columns = {
            key: torch.cat(column) for key, column in zip(loaded, zip(*scores, strict=True), strict=True)
        }
        spread = diversity(images, prompts)
        evaluations[name] = Evaluation(
            prompts, list(range(len(prompts))), columns, spread, images[:keep].cpu()
        )
    return Comparison(evaluations)


def check_names(names: Sequence[str]) -> None:
    """Refuse fewer than two names, or one twice."""
    if len(names) < 2:
        raise UserError(f"A comparison takes two or more, not {len(names)}.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice!r} is there twice; each thing compared needs a name of its own.")
