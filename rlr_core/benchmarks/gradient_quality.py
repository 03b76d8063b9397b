"""Every method's gradient on a real model and reward, measured at fixed weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlr_core.benchmarks.moments import (
    Moments,
    cosine,
    moments,
    paired_z_scores,
    random_directions,
    relative_noise,
)
from rlr_core.common.random_streams import torch_stream
from rlr_core.config import MethodConfig, TrainConfig
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.methods import method_class
from rlr_core.rewards.base import Reward
from rlr_core.training.setup import Parts, build


def methods_for(steps: int) -> dict[str, MethodConfig]:
    """The rows that are measured, for a chain of T = steps."""
    return {
        "full": MethodConfig("full"),
        "adaptive": MethodConfig("adaptive"),
        "adaptive, half of the chain": MethodConfig("adaptive", budget=0.5),
        "rlr (the paper)": MethodConfig("rlr", window=min(2, steps - 1)),
        "rlr, likelihood-ratio remainder": MethodConfig(
            "rlr", window=min(2, steps - 1), remainder="likelihood_ratio"
        ),
        "rlr, importance-weighted": MethodConfig("rlr", window=min(2, steps - 1), remainder="importance"),
        "likelihood_ratio": MethodConfig("likelihood_ratio"),
        "zeroth_order": MethodConfig("zeroth_order"),
        "truncated, K = 1": MethodConfig("truncated", depth=1),
        f"truncated, K = {max(1, steps // 2)}": MethodConfig("truncated", depth=max(1, steps // 2)),
    }


@dataclass
class GradientQuality:
    """One method's gradient."""

    name: str
    noise: float
    """Standard deviation of one update's estimate over the norm of the true gradient."""
    cosine: float
    """Between the estimates' mean and the truth, noise taken out of the norms; NaN where noise drowns it."""
    largest_z: float
    """Largest |z| of the mean against back-propagation through the whole chain on the same batches, along the
    true gradient and four random directions."""
    forward: int
    """Denoiser evaluations of an update without a gradient."""
    backward: int
    """Denoiser evaluations of an update with a gradient."""
    seconds: float
    """Of an update, on average."""


def measure_methods(
    model: DiffusionModel,
    reward: Reward,
    config: TrainConfig,
    updates: int,
    methods: dict[str, MethodConfig] | None = None,
    spread: float = 0.05,
) -> Iterator[GradientQuality]:
    """Measure each method on the same `updates` batches of the config's size, every prompt once in each.

    The truth is full back-propagation on them; the directions come from batches of their own. The
    adapter's second matrices are drawn with standard deviation `spread`: at 0 half of the gradient is 0.
    The model has no adapter afterwards.
    """
    # not with the config's own method, which may leave part of the chain to the base model
    parts = build(model, reward, config.replace(method=MethodConfig("full")))
    try:
        generator = torch_stream(config.seed, "spread")
        with torch.no_grad():
            for name, parameter in parts.adapter.named_parameters().items():
                if "lora_B" in name:
                    parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        parameters = parts.adapter.parameters()
        others = _estimates(parts, MethodConfig("full"), updates, first_step=100_000)
        elsewhere = moments(others, random_directions(parameters, 1))
        directions = [elsewhere.mean, *random_directions(parameters, 4)]
        truth = moments(_estimates(parts, MethodConfig("full"), updates, first_step=0), directions)
        for name, options in (methods or methods_for(parts.chain.T)).items():
            yield _measure(parts, name, options, updates, directions, truth, elsewhere)
    finally:
        parts.adapter.detach()


def _measure(
    parts: Parts,
    name: str,
    options: MethodConfig,
    updates: int,
    directions: list[list[Tensor]],
    truth: Moments,
    elsewhere: Moments,
) -> GradientQuality:
    """truth: full back-propagation on the same batches; elsewhere: on others."""
    counts = parts.chain.evaluations
    forward, backward, start = counts.forward, counts.backward, time.monotonic()
    estimated = moments(_estimates(parts, options, updates, first_step=0), directions)
    return GradientQuality(
        name,
        relative_noise(estimated, truth),
        cosine(estimated, elsewhere),
        float(paired_z_scores(estimated, truth).abs().max()),
        (counts.forward - forward) // updates,
        (counts.backward - backward) // updates,
        (time.monotonic() - start) / updates,
    )


def _estimates(parts: Parts, options: MethodConfig, updates: int, first_step: int) -> Iterator[list[Tensor]]:
    """Independent estimates with the adapter's weights as they are."""
    method = method_class(options.name)(parts.method.problem, options)
    method.prepare(lambda step, per_prompt=None: parts.batches.draw(first_step + 50_000, 1))
    for step in range(first_step, first_step + updates):
        samples = method.collect(parts.batches.draw(step, 1), step)
        yield next(method.gradients(samples)).gradient
