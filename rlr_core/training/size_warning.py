"""A size far from what the model was made for is said at once, with the time that it will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from rlr_core.diffusion.chain import EvaluationCounts
from rlr_core.training.pace import LEARNING
from rlr_core.training.preflight import picture_size

if TYPE_CHECKING:
    from rlr_core.training.setup import Parts

FAR = 4.0
"""Times the area of the model's own size, or its inverse, from which on a size is far from it."""
LONG_ENOUGH = 1.0
"""Seconds of an evaluation from which on larger pictures are no longer tried but reckoned."""


def warn_of_size(parts: Parts, tell: Callable[[str], None]) -> None:
    """Say that pictures are much larger or smaller than the model's own, and how long that takes."""
    width, height = picture_size(parts)
    high, wide = parts.model.default_size
    ratio = width * height / (wide * high)
    if 1 / FAR < ratio < FAR:
        return
    times = f"{ratio:,.0f} times" if ratio > 1 else f"1/{1 / ratio:,.0f} of"
    sentence = (
        f"Pictures of {width} x {height} have {times} the area that this model was made for, "
        f"{wide} x {high}, and it will hardly draw them well."
    )
    if ratio > 1:
        sampling = parts.chain.T * _seconds_of_evaluation(parts)
        config, held_out = parts.config, len(parts.held_out.seeds)
        update = sampling * config.batch * (1 + LEARNING)
        evaluations = 1 + math.ceil(config.steps / config.evaluation.every)
        whole = update * config.steps + sampling * held_out * evaluations
        sentence += f" An update takes about {duration(update)}, the run about {duration(whole)}."
    tell(sentence + " Leave width and height open for the model's own size.")


def duration(seconds: float) -> str:
    """For people: '40 seconds', '5 minutes', '3 hours', '12 days'."""
    units = (("days", 86_400), ("hours", 3_600), ("minutes", 60))
    for unit, size in units:
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _seconds_of_evaluation(parts: Parts) -> float:
    """What the denoiser takes for one picture of the run's size: tried with smaller ones that grow until one
    takes long enough, and reckoned from the last two. Leaves no trace in the run."""
    width, height = picture_size(parts)
    high, wide = parts.model.default_size
    multiple = max(high, wide)
    tried: list[tuple[float, float]] = []  # area, seconds
    side = min(multiple, width, height)
    _seconds(parts, side, side)  # the first one wakes the device up
    while side * side < width * height:
        tried.append((side * side, _seconds(parts, side, side)))
        if tried[-1][1] > LONG_ENOUGH:
            break
        side *= 2
    else:
        return _seconds(parts, height, width)
    area, seconds = tried[-1]
    power = 1.0
    if len(tried) > 1:
        smaller, fewer = tried[-2]
        power = math.log(seconds / fewer) / math.log(area / smaller)
    return seconds * (width * height / area) ** min(2.0, max(1.0, power))


@torch.no_grad()
def _seconds(parts: Parts, height: int, width: int) -> float:
    """Of one step of one picture of this size."""
    model, chain, counts = parts.model, parts.chain, parts.chain.evaluations
    shape = model.latent_shape(height, width, parts.config.sampler.frames)
    latents = torch.zeros(1, *shape, device=model.device)
    conditioning = parts.batches.book.conditioning(parts.batches.prompts[:1])
    chain.evaluations = EvaluationCounts()
    started = time.monotonic()
    try:
        chain.mean(latents, chain.T, conditioning)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
    finally:
        chain.evaluations = counts
    return time.monotonic() - started
