"""Pictures and measurements of a model as it stands, with or without a LoRA: no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rlr_core.common.listening import heard_inside
from rlr_core.config import SamplerConfig
from rlr_core.config.prompts import read_prompts
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.errors import UserError
from rlr_core.evaluation import measures
from rlr_core.evaluation.measures import Evaluation
from rlr_core.rewards import load_reward

if TYPE_CHECKING:
    from torch import Tensor

    from rlr_core.diffusion.models.base import DiffusionModel
    from rlr_core.lora.attach import Adapter

OnProgress = Callable[[int, int], None]
"""Told how many pictures are done, and of how many."""


def sample(
    model: DiffusionModel,
    prompts: Sequence[Any],
    seeds: Sequence[int],
    sampler: SamplerConfig | None = None,
    *,
    adapter: Adapter | None = None,
    batch: int = 8,
    on_progress: OnProgress | None = None,
    check: Callable[[], None] | None = None,
) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] on the CPU, picture i of prompt i and seed i.

    check: called before every evaluation of the denoiser and inside it; may raise to stop there. prompts: as
    in TrainConfig.prompts. adapter: the one in the model, which then acts in its part of the steps only;
    without it an adapter acts in all of them. A picture does not depend on its batch. Raises UserError where
    there is not one seed, from 0 on, for every prompt.
    """
    if len(prompts) != len(seeds):
        raise UserError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}.")
    if any(seed < 0 for seed in seeds):
        raise UserError(f"Seeds start at 0; {min(seeds)} is none.")
    places = list(range(len(seeds)))
    measured = _measure(
        model, {}, prompts, places, seeds, sampler, batch, len(seeds), on_progress, check, adapter
    )
    return measured.images


def evaluate(
    model: DiffusionModel,
    rewards: Mapping[str, Any],
    prompts: Sequence[Any],
    sampler: SamplerConfig | None = None,
    *,
    adapter: Adapter | None = None,
    samples: int = 32,
    seed: int = 0,
    batch: int = 8,
    keep: int = 0,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Score `samples` pictures of the model by every reward, as a training run does its held-out ones.

    rewards: rewards, names or callables by the name that their scores get. prompts: as in
    TrainConfig.prompts. adapter: as for `sample`. Every prompt gets two pictures or more; the same prompts,
    samples and seed give the same pictures, so that `difference` can compare two models picture by picture.
    """
    prompts = read_prompts(prompts)
    places, seeds = measures.plan(len(prompts), samples, seed)
    loaded = {name: load_reward(reward).to(model.device) for name, reward in rewards.items()}
    for reward in loaded.values():
        reward.prepare([prompts[place].text for place in dict.fromkeys(places)])
    return _measure(model, loaded, prompts, places, seeds, sampler, batch, keep, on_progress, adapter=adapter)


def _measure(
    model: DiffusionModel,
    rewards: Mapping[str, Any],
    prompts: Sequence[Any],
    places: Sequence[int],
    seeds: Sequence[int],
    sampler: SamplerConfig | None,
    batch: int,
    keep: int,
    on_progress: OnProgress | None,
    check: Callable[[], None] | None = None,
    adapter: Adapter | None = None,
) -> Evaluation:
    """Picture i is of prompt places[i] and of seed seeds[i]."""
    sampler = sampler or SamplerConfig()
    chosen = read_prompts([prompts[place] for place in places])
    book = PromptBook(model, chosen, sampler.negative_prompt, sampler.stage_boundaries)
    chain = Chain(model, model.schedule(sampler), sampler.guidance)
    chain.on_evaluation = check
    if adapter is not None:
        chain.base, chain.base_steps = adapter.disabled, round((1 - adapter.end_percent) * chain.T)
    shape = model.latent_shape(
        sampler.height or model.default_size[0], sampler.width or model.default_size[1], sampler.frames
    )
    with nullcontext() if check is None else heard_inside(model, check):
        return measures.evaluate(
            chain,
            rewards,
            [prompt.text for prompt in chosen],
            seeds,
            book.conditioning,
            shape,
            batch=batch,
            device=model.device,
            keep=keep,
            on_progress=on_progress,
        )
