"""ComfyUI's schedules as steps of the engine's chain, for every kind of prediction there.

The network's output is D, the prediction of x_0 that `apply_model` returns. So eps, v, EDM, x_0, flow and
Cosmos models need no case of their own, only one of two coordinate systems for sigmas s -> s':

    flow                x = (1 - s) x_0 + s eps       v = (x - D) / s, with the engine's flow kernels
    everything else     x = x_0 + s eps               x' = (down / s) x + (1 - down / s) D + up z

The chain starts from standard normal noise: its latents are x / scale(s), where scale is 1 for flow and
sqrt(1 + s^2) for the others, and ComfyUI's own factor on the noise at the first sigma.
With eta = 0 the steps are KSampler's euler.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import comfy.model_sampling
import comfy.samplers
import torch

from rlr_core.diffusion import kernels
from rlr_core.diffusion.kernels import Step
from rlr_core.diffusion.models.base import NoiseLevel
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

DEFAULT_SCHEDULER = "simple"


class Level(float):
    """A sigma, with what the chain's latents at it are to be multiplied by to be ComfyUI's."""

    scale: float

    def __new__(cls, sigma: float, scale: float) -> Level:
        level = super().__new__(cls, sigma)
        level.scale = scale
        return level


def is_flow(model_sampling: Any) -> bool:
    """Whether x = (1 - s) x_0 + s eps."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def scale_at(model_sampling: Any, sigma: float) -> float:
    """ComfyUI's latents at a sigma over the chain's."""
    return 1.0 if is_flow(model_sampling) else math.sqrt(1 + sigma**2)


def sigmas_of(model_sampling: Any, scheduler: str, steps: int) -> list[float]:
    """ComfyUI's sigmas for a scheduler, noisiest first. Raises UserError for one that it has not."""
    known = list(comfy.samplers.SCHEDULER_NAMES)
    if scheduler not in known:
        raise UserError(f"There is no scheduler {scheduler[:100]!r} here; use one of {', '.join(known)}.")
    return [float(s) for s in comfy.samplers.calculate_sigmas(model_sampling, scheduler, steps)]


def schedule(model_sampling: Any, scheduler: str, sampler: SamplerConfig, name: str) -> list[Step]:
    """The chain's steps; some schedulers make a few more or fewer than `sampler.steps`."""
    sigmas = sigmas_of(model_sampling, scheduler, sampler.steps)
    flow = is_flow(model_sampling)
    own = kernels.FLOW_KERNELS if flow else kernels.DIFFUSION_KERNELS
    kernel = own[0] if sampler.kernel == "auto" else sampler.kernel
    if kernel not in own:
        raise UserError(f"Sampler {kernel!r} is not for {name}, which runs {' or '.join(('auto', *own))}.")
    scales = [scale_at(model_sampling, sigma) for sigma in sigmas]
    scales[0] = _first_scale(model_sampling, sigmas[0])
    scales[-1] = 1 / _last_factor(model_sampling, sigmas[-1])
    if flow:
        steps = _flow(sigmas, sampler.eta, kernel, float(getattr(model_sampling, "noise_scale", 1.0)))
    else:
        steps = [_ancestral(s, s_next, sampler.eta) for s, s_next in zip(sigmas, sigmas[1:], strict=False)]
    scaled = [
        Step(Level(sigma, scale), step.a * scale / after, step.b / after, step.sigma / after)
        for sigma, scale, after, step in zip(sigmas, scales, scales[1:], steps, strict=False)
    ]
    return kernels.with_last_step_noise(scaled, sampler.last_step_noise)


def noise_level(model_sampling: Any, share: float) -> NoiseLevel:
    """The forward process at a share of its timesteps, in the chain's coordinates."""
    highest, lowest = float(model_sampling.sigma_max), float(model_sampling.sigma_min)
    sigma = float(model_sampling.percent_to_sigma(1 - share))
    sigma = min(max(sigma, lowest), highest)
    scale = scale_at(model_sampling, sigma)
    if is_flow(model_sampling):
        noise_scale = float(getattr(model_sampling, "noise_scale", 1.0))
        return NoiseLevel(Level(sigma, scale), 1 - sigma, sigma * noise_scale)
    return NoiseLevel(Level(sigma, scale), 1 / scale, sigma / scale)


def _flow(sigmas: list[float], eta: float, kernel: str, noise_scale: float) -> list[kernels.Gaussian]:
    """The engine's flow steps for v, written for D = x - s v."""
    steps = kernels.flow_steps(sigmas[:-1], sigmas, eta=eta, kernel=kernel)
    return [
        kernels.Gaussian(step.a + step.b / s, -step.b / s, step.sigma * noise_scale)
        for s, step in zip(sigmas, steps, strict=False)
    ]


def _ancestral(s: float, s_next: float, eta: float) -> kernels.Gaussian:
    """DDIM-eta in the coordinates x = x_0 + s eps; eta = 0 is Euler."""
    alpha, alpha_next = 1 / (1 + s**2), 1 / (1 + s_next**2)
    up = 0.0
    if eta > 0 and s_next > 0:
        variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
        up = min(eta * math.sqrt(variance * (1 + s_next**2)), s_next)
    down = math.sqrt(max(s_next**2 - up**2, 0.0))
    return kernels.Gaussian(down / s, 1 - down / s, up)


def _first_scale(model_sampling: Any, sigma: float) -> float:
    """What KSampler multiplies standard normal noise by to begin with."""
    highest = float(model_sampling.sigma_max)
    most = math.isclose(highest, sigma, rel_tol=1e-5) or sigma > highest
    one = torch.ones(1, dtype=torch.float64)
    return float(model_sampling.noise_scaling(torch.tensor([sigma]).double(), one, 0 * one, most))


def _last_factor(model_sampling: Any, sigma: float) -> float:
    """What KSampler multiplies the last latents by: not 1 where a schedule ends above zero."""
    one = torch.ones(1, dtype=torch.float64)
    return float(model_sampling.inverse_noise_scaling(torch.tensor([sigma]).double(), one))
