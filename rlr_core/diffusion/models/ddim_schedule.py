"""Schedules of the diffusion families: the steps of diffusers' DDIMScheduler, never clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlr_core.diffusion import kernels
from rlr_core.diffusion.models.base import NoiseLevel
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

    from rlr_core.config import SamplerConfig


def schedule(config: dict[str, Any], sampler: SamplerConfig, name: str) -> list[kernels.Step]:
    """The steps of a model called `name` whose scheduler_config.json is `config`. Raises UserError."""
    if sampler.kernel not in ("auto", *kernels.DIFFUSION_KERNELS):
        raise UserError(
            f"Sampler {sampler.kernel!r} is for flow models; {name} runs "
            f"{' or '.join(('auto', *kernels.DIFFUSION_KERNELS))}."
        )
    scheduler = _ddim(config)
    steps = []
    try:
        for timestep, alpha, alpha_next in _levels(scheduler, sampler.steps):
            gaussian = kernels.ddim(alpha, alpha_next, sampler.eta, scheduler.config["prediction_type"])
            steps.append(kernels.Step(float(timestep), *gaussian))
    except ValueError as error:
        raise UserError(f"{name} cannot run its schedule: {error}") from error
    return kernels.with_last_step_noise(steps, sampler.last_step_noise)


def noise_level(config: dict[str, Any], share: float) -> NoiseLevel:
    """One of the training timesteps of the scheduler's table."""
    alphas = _ddim(config).alphas_cumprod
    timestep = round(share * (len(alphas) - 1))
    alpha = float(alphas[timestep])
    return NoiseLevel(float(timestep), alpha**0.5, (1 - alpha) ** 0.5)


def _ddim(config: dict[str, Any]) -> DDIMScheduler:
    """diffusers' own DDIM scheduler for any scheduler's config: it knows every default and every table."""
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    return scheduler


def _levels(scheduler: DDIMScheduler, steps: int) -> list[tuple[int, float, float]]:
    """(timestep, alpha, next alpha) of each step, noisiest first, as DDIMScheduler.step looks them up."""
    alphas = scheduler.alphas_cumprod.tolist()
    scheduler.set_timesteps(steps)
    stride = len(alphas) // steps
    levels = []
    for timestep in scheduler.timesteps.tolist()[:steps]:  # trailing spacing yields one too many for some T
        if timestep >= len(alphas):
            raise ValueError(f"{steps} steps do not fit its {len(alphas)} training steps; use fewer.")
        following = timestep - stride
        alpha_next = alphas[following] if following >= 0 else float(scheduler.final_alpha_cumprod)
        levels.append((timestep, alphas[timestep], alpha_next))
    return levels
