"""Sampler steps as pure functions: the Gaussian that takes x_t to x_{t-1}.

Every sampler here has a mean that is linear in the latent and in the network's output, so one step is
three numbers, computed in float64 from the noise schedule alone:

    x_{t-1} = a * x_t + b * output + sigma * z ,   z ~ N(0, I)

sigma = 0 is legal at any step: the step is then deterministic and has no likelihood ratio.
With eta = 0 each kernel is the stock deterministic sampler of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """One step of a sampler: x_{t-1} ~ N(a x_t + b output, sigma^2 I)."""

    timestep: float  # what the denoiser is told
    a: float
    b: float
    sigma: float


class Gaussian(NamedTuple):
    """Coefficients of one transition: mean = a * x + b * output, standard deviation sigma."""

    a: float
    b: float
    sigma: float


# --- diffusion models: alpha is the cumulative product of (1 - beta), 1 on the picture, 0 on pure noise ---


def ddim(alpha: float, alpha_next: float, eta: float, prediction: str) -> Gaussian:
    """DDIM-eta (Song et al. 2021, eq. 12 and 16) for a network that predicts eps or v.

    alpha, alpha_next: cumulative alphas of x_t and x_{t-1}, in [0, 1]; eta: 0 is DDIM, 1 is DDPM;
    prediction: "epsilon" or "v_prediction". alpha = 0 (zero terminal SNR) is possible with v only.
    """
    sigma = 0.0
    if eta > 0 and alpha_next < 1:
        sigma = eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
    to_eps = math.sqrt(max(1 - alpha_next - sigma**2, 0.0))
    to_x0 = math.sqrt(alpha_next)
    if prediction == "epsilon":
        if alpha <= 0:
            raise ValueError("An eps-prediction model cannot start from a schedule with zero terminal SNR.")
        return Gaussian(to_x0 / math.sqrt(alpha), to_eps - to_x0 * math.sqrt((1 - alpha) / alpha), sigma)
    if prediction == "v_prediction":
        signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        return Gaussian(to_x0 * signal + to_eps * noise, to_eps * signal - to_x0 * noise, sigma)
    raise ValueError(f"Unknown prediction type {prediction!r}: use 'epsilon' or 'v_prediction'.")


# --- flow models: x_s = (1 - s) x_0 + s eps, output v = eps - x_0, s from 1 (noise) to 0 (picture) ---


def flow_ddim(s: float, s_next: float, eta: float) -> Gaussian:
    """DDIM-eta carried over to flows: the default; no singularity, no noise at the last step."""
    sigma = 0.0
    if eta > 0 and s_next > 0:
        ratio = s_next * (1 - s) / (s * (1 - s_next))
        sigma = eta * s_next * math.sqrt(max(1 - ratio**2, 0.0))
    to_x0, to_eps = 1 - s_next, math.sqrt(max(s_next**2 - sigma**2, 0.0))
    return Gaussian(to_x0 + to_eps, to_eps * (1 - s) - to_x0 * s, sigma)


def flow_grpo(s: float, s_next: float, eta: float, s_second: float) -> Gaussian:
    """The SDE of Flow-GRPO (arXiv 2505.05470); its noise level a is eta (the paper's runs use 0.7).

    s_second stands in for s = 1 in the noise's denominator (the schedule's second value), as there.
    """
    dt = s_next - s
    level = eta * math.sqrt(s / (1 - (s_second if s >= 1 else s)))
    half = level**2 * dt / (2 * s)
    return Gaussian(1 + half, dt + half * (1 - s), level * math.sqrt(-dt))


def dance(s: float, s_next: float, eta: float) -> Gaussian:
    """The SDE of DanceGRPO (arXiv 2505.07818), eta about 0.3; the last step returns the x_0 prediction."""
    if s_next <= 0:
        return Gaussian(1.0, -s, 0.0)
    dt = s_next - s
    # score = -(x - (1 - s) x_0) / s^2 with x_0 = x - s v, hence -(x + (1 - s) v) / s
    drift = 0.5 * eta**2 * dt / s
    return Gaussian(1 + drift, dt + drift * (1 - s), eta * math.sqrt(-dt))


FLOW_KERNELS = ("flow_ddim", "flow_grpo", "dance")
DIFFUSION_KERNELS = ("ddim",)


# --- whole schedules ---


def diffusion_steps(
    timesteps: Sequence[float], alphas: Sequence[float], *, eta: float, prediction: str
) -> list[Step]:
    """DDIM steps from noise to picture.

    timesteps: T values, noisiest first; alphas: T + 1 cumulative alphas, the last one after the last step.
    """
    _check_lengths(timesteps, alphas)
    pairs = zip(alphas[:-1], alphas[1:], strict=True)
    return [
        Step(float(timestep), *ddim(alpha, alpha_next, eta, prediction))
        for timestep, (alpha, alpha_next) in zip(timesteps, pairs, strict=True)
    ]


def flow_steps(
    timesteps: Sequence[float], levels: Sequence[float], *, eta: float, kernel: str = "flow_ddim"
) -> list[Step]:
    """Flow steps from noise to picture.

    timesteps: T values as the network wants them; levels: T + 1 noise levels s, from at most 1 down to 0.
    """
    _check_lengths(timesteps, levels)
    kernels: dict[str, Callable[[float, float], Gaussian]] = {
        "flow_ddim": lambda s, s_next: flow_ddim(s, s_next, eta),
        "flow_grpo": lambda s, s_next: flow_grpo(s, s_next, eta, levels[1]),
        "dance": lambda s, s_next: dance(s, s_next, eta),
    }
    if kernel not in kernels:
        raise ValueError(f"Unknown flow sampler {kernel!r}: use one of {', '.join(FLOW_KERNELS)}.")
    pairs = zip(levels[:-1], levels[1:], strict=True)
    return [
        Step(float(timestep), *kernels[kernel](s, s_next))
        for timestep, (s, s_next) in zip(timesteps, pairs, strict=True)
    ]


def with_last_step_noise(steps: Sequence[Step], sigma: float) -> list[Step]:
    """The same steps with noise of standard deviation `sigma` added to the last one if it has less.

    It brings the last step within reach of likelihood ratios (black-box rewards), at the price of that
    much noise in the latent of the picture.
    """
    *rest, last = steps
    return [*rest, last._replace(sigma=max(last.sigma, sigma))]


def _check_lengths(timesteps: Sequence[float], levels: Sequence[float]) -> None:
    if len(levels) != len(timesteps) + 1:
        raise ValueError(f"{len(timesteps)} timesteps need one more noise level, not {len(levels)}.")
