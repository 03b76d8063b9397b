"""Sampler steps against formulas written down independently, against samples, and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch

from rlr_core.diffusion import kernels
from rlr_core.diffusion.kernels import Step

X, OUTPUT = 0.7, -1.3  # an arbitrary latent and network output
ALPHAS = [(0.02, 0.15), (0.3, 0.31), (0.6, 0.9), (0.95, 1.0)]
LEVELS = [(1.0, 0.8), (0.9, 0.5), (0.3, 0.25), (0.2, 0.0)]
ETAS = [0.0, 0.4, 1.0]


# --- the formulas, as printed ---


def printed_ddim(alpha, alpha_next, eta, prediction):
    """Song et al. 2021, eq. 12 and 16, by way of the predicted x_0 and noise."""
    if prediction == "epsilon":
        noise = OUTPUT
        picture = (X - math.sqrt(1 - alpha) * noise) / math.sqrt(alpha)
    else:
        picture = math.sqrt(alpha) * X - math.sqrt(1 - alpha) * OUTPUT
        noise = math.sqrt(alpha) * OUTPUT + math.sqrt(1 - alpha) * X
    sigma = eta * math.sqrt((1 - alpha_next) / (1 - alpha)) * math.sqrt(1 - alpha / alpha_next)
    mean = math.sqrt(alpha_next) * picture + math.sqrt(1 - alpha_next - sigma**2) * noise
    return mean, sigma


def printed_flow_ddim(s, s_next, eta):
    """DDIM with alpha = 1 - s and noise level s: the ratio of the two steps' signal-to-noise ratios."""
    picture, noise = X - s * OUTPUT, X + (1 - s) * OUTPUT
    sigma = 0.0
    if s_next > 0:
        snr_ratio = (s_next * (1 - s) / ((1 - s_next) * s)) ** 2
        sigma = eta * s_next * math.sqrt(1 - snr_ratio)
    return (1 - s_next) * picture + math.sqrt(s_next**2 - sigma**2) * noise, sigma


def printed_flow_grpo(s, s_next, level, s_second):
    """arXiv 2505.05470: the reverse SDE in Euler-Maruyama steps."""
    dt = s_next - s
    noise_level = level * math.sqrt(s / (1 - (s_second if s == 1 else s)))
    first = X * (1 + noise_level**2 / (2 * s) * dt)
    second = OUTPUT * (1 + noise_level**2 * (1 - s) / (2 * s)) * dt
    return first + second, noise_level * math.sqrt(-dt)


def printed_dance(s, s_next, eta):
    """arXiv 2505.07818: velocity plus half of eta^2 times the score; the last step returns x_0."""
    dt = s_next - s
    picture = X - s * OUTPUT
    if s_next == 0:
        return picture, 0.0
    score = -(X - (1 - s) * picture) / s**2
    return X + dt * OUTPUT - 0.5 * eta**2 * score * dt, eta * math.sqrt(-dt)


def mean_of(step) -> float:
    return step.a * X + step.b * OUTPUT


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("alphas", ALPHAS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_is_equation_12_and_16(alphas, eta, prediction):
    step = kernels.ddim(*alphas, eta, prediction)
    assert (mean_of(step), step.sigma) == pytest.approx(printed_ddim(*alphas, eta, prediction), abs=1e-12)


@pytest.mark.parametrize("alphas", ALPHAS)
def test_ddim_with_eta_1_is_the_ddpm_posterior(alphas):
    alpha, alpha_next = alphas
    step = kernels.ddim(alpha, alpha_next, 1.0, "epsilon")
    keep = alpha / alpha_next  # 1 - beta
    picture = (X - math.sqrt(1 - alpha) * OUTPUT) / math.sqrt(alpha)
    mean = math.sqrt(alpha_next) * (1 - keep) / (1 - alpha) * picture
    mean += math.sqrt(keep) * (1 - alpha_next) / (1 - alpha) * X
    variance = (1 - keep) * (1 - alpha_next) / (1 - alpha)
    assert (mean_of(step), step.sigma**2) == pytest.approx((mean, variance), abs=1e-12)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("levels", LEVELS)
def test_flow_kernels_are_their_printed_formulas(levels, eta):
    pairs = [
        (kernels.flow_ddim(*levels, eta), printed_flow_ddim(*levels, eta)),
        (kernels.flow_grpo(*levels, eta, 0.8), printed_flow_grpo(*levels, eta, 0.8)),
        (kernels.dance(*levels, eta), printed_dance(*levels, eta)),
    ]
    for step, printed in pairs:
        assert (mean_of(step), step.sigma) == pytest.approx(printed, abs=1e-12)


# --- samples ---

SAMPLES = 200_000


def assert_gaussian(samples, mean, std):
    """Sample mean and variance are within 4 of their standard errors."""
    n = samples.numel()
    z_mean = (samples.mean() - mean) / (std / math.sqrt(n))
    z_variance = (samples.var() / std**2 - 1) * math.sqrt((n - 1) / 2)
    assert abs(z_mean) < 4 and abs(z_variance) < 4, (z_mean, z_variance)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("alphas", ALPHAS[:3])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_ddim_step_lands_on_the_next_noise_level(alphas, eta, prediction):
    """Whatever eta: x_0 noised to alpha and stepped with the true output is x_0 noised to alpha_next."""
    alpha, alpha_next = alphas
    noise, z = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picture = 0.8
    latents = math.sqrt(alpha) * picture + math.sqrt(1 - alpha) * noise
    v = math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * picture
    step = kernels.ddim(alpha, alpha_next, eta, prediction)
    samples = step.a * latents + step.b * (noise if prediction == "epsilon" else v) + step.sigma * z
    assert_gaussian(samples, math.sqrt(alpha_next) * picture, math.sqrt(1 - alpha_next))


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("levels", LEVELS[:3])
def test_a_flow_ddim_step_lands_on_the_next_noise_level(levels, eta):
    s, s_next = levels
    noise, z = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    picture = 0.8
    step = kernels.flow_ddim(s, s_next, eta)
    samples = step.a * ((1 - s) * picture + s * noise) + step.b * (noise - picture) + step.sigma * z
    assert_gaussian(samples, (1 - s_next) * picture, s_next)


@pytest.mark.parametrize("levels", LEVELS[:3])
@pytest.mark.parametrize("kernel", ["flow_grpo", "dance"])
def test_sde_steps_have_the_mean_and_spread_of_finely_simulated_noise(levels, kernel):
    """The SDE with its coefficients frozen over the step, simulated in 100 small steps of its own."""
    s, s_next = levels
    eta, parts = 0.5, 100
    step = kernels.flow_grpo(s, s_next, eta, 0.8) if kernel == "flow_grpo" else kernels.dance(s, s_next, eta)
    diffusion = eta * math.sqrt(s / (1 - (0.8 if s == 1 else s))) if kernel == "flow_grpo" else eta
    score = -(X + (1 - s) * OUTPUT) / s
    drift = OUTPUT - 0.5 * diffusion**2 * score  # in the direction of s
    rng = torch.Generator().manual_seed(2)
    dt = (s_next - s) / parts
    samples = torch.full((SAMPLES // 10,), X, dtype=torch.float64)
    for _ in range(parts):
        noise = torch.randn(samples.shape, generator=rng, dtype=torch.float64)
        samples = samples + drift * dt + diffusion * math.sqrt(-dt) * noise
    assert_gaussian(samples, mean_of(step), step.sigma)


DATA_STD = 0.3


def final_std(steps, levels, prediction):
    """Standard deviation of the pictures when the exact network for x_0 ~ N(0, DATA_STD^2) drives the chain.

    levels: (signal, noise) of each step, x = signal * x_0 + noise * eps.
    """
    variance = 1.0
    for step, (signal, noise) in zip(steps, levels, strict=True):
        total = signal**2 * DATA_STD**2 + noise**2
        eps, picture = noise / total, signal * DATA_STD**2 / total  # E[. | x] = . * x
        output = {
            "epsilon": eps,
            "v_prediction": signal * eps - noise * picture,
            "velocity": eps - picture,
        }[prediction]
        variance = (step.a + step.b * output) ** 2 * variance + step.sigma**2
    return math.sqrt(variance)


@pytest.mark.parametrize(
    "kernel, eta", [("flow_ddim", 1.0), ("flow_ddim", 0.0), ("flow_grpo", 0.7), ("dance", 0.3)]
)
def test_flow_chains_reach_the_data_as_steps_grow(kernel, eta):
    errors = []
    for count in (50, 200, 800):
        levels = [1 - i / count for i in range(count + 1)]
        steps = kernels.flow_steps([s * 1000 for s in levels[:-1]], levels, eta=eta, kernel=kernel)
        std = final_std(steps, [(1 - s, s) for s in levels[:-1]], "velocity")
        errors.append(abs(std - DATA_STD))
    assert max(errors[1:]) < errors[0] < 0.1 and errors[2] < 0.005, errors


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", ETAS)
def test_ddim_chains_reach_the_data_as_steps_grow(prediction, eta):
    errors = []
    for count in (50, 200, 800):
        alphas = [1e-5 + (1 - 1e-5) * math.sin(math.pi / 2 * i / count) ** 2 for i in range(count + 1)]
        steps = kernels.diffusion_steps(range(count, 0, -1), alphas, eta=eta, prediction=prediction)
        levels = [(math.sqrt(a), math.sqrt(1 - a)) for a in alphas[:-1]]
        errors.append(abs(final_std(steps, levels, prediction) - DATA_STD))
    assert max(errors[1:]) < errors[0] < 0.1 and errors[2] < 0.005, errors


# --- no noise ---


@pytest.mark.parametrize("kernel", kernels.FLOW_KERNELS)
def test_flow_steps_without_noise_are_diffusers_euler_steps(kernel):
    from diffusers import FlowMatchEulerDiscreteScheduler

    for shift, count in ((1.0, 2), (3.0, 10), (1.5, 28)):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=[1 - i / count for i in range(count)])
        levels = scheduler.sigmas.double().tolist()
        steps = kernels.flow_steps(scheduler.timesteps.tolist(), levels, eta=0.0, kernel=kernel)
        rng = torch.Generator().manual_seed(count)
        x = torch.randn(64, generator=rng)
        for step in steps:
            velocity = torch.randn(64, generator=rng)
            expected = scheduler.step(velocity, scheduler.timesteps[scheduler.step_index or 0], x).prev_sample
            torch.testing.assert_close(step.a * x + step.b * velocity, expected, rtol=1e-5, atol=1e-6)
            assert step.sigma == 0
            x = expected


def test_noise_may_be_absent_at_any_step():
    """Equal neighbours (a stretch without progress), the last step, eta = 0: all finite, all sigma = 0."""
    still = [kernels.ddim(0.5, 0.5, 1.0, "epsilon"), kernels.flow_ddim(0.5, 0.5, 1.0)]
    last = [
        kernels.ddim(0.9, 1.0, 1.0, "v_prediction"),
        kernels.flow_ddim(0.2, 0.0, 1.0),
        kernels.dance(0.2, 0.0, 0.3),
    ]
    for step in still:
        assert tuple(step) == pytest.approx((1.0, 0.0, 0.0), abs=1e-12)
    for step in last:
        assert step.sigma == 0 and math.isfinite(step.a) and math.isfinite(step.b)


def test_flow_grpo_keeps_noise_at_the_last_step():
    assert kernels.flow_grpo(0.2, 0.0, 0.7, 0.9).sigma == pytest.approx(0.7 * 0.5 * math.sqrt(0.2))


def test_v_prediction_starts_from_pure_noise_and_eps_prediction_refuses_to():
    step = kernels.ddim(0.0, 0.2, 1.0, "v_prediction")
    # at alpha = 0 the output is minus the picture and the latent is the noise
    assert tuple(step) == pytest.approx((0.0, -math.sqrt(0.2), math.sqrt(0.8)), abs=1e-7)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        kernels.ddim(0.0, 0.2, 1.0, "epsilon")


def test_last_step_noise_is_a_floor_and_touches_nothing_else():
    steps = [Step(2.0, 1.0, 0.5, 0.3), Step(1.0, 1.1, 0.4, 0.02)]
    assert kernels.with_last_step_noise(steps, 0.05) == [steps[0], steps[1]._replace(sigma=0.05)]
    assert kernels.with_last_step_noise(steps, 0.01) == steps


def test_schedules_refuse_what_they_cannot_run():
    with pytest.raises(ValueError, match="2 timesteps need"):
        kernels.flow_steps([1000, 500], [1.0, 0.5], eta=0.0)
    with pytest.raises(ValueError, match="Unknown flow sampler 'ddim'"):
        kernels.flow_steps([1000, 500], [1.0, 0.5, 0.0], eta=0.0, kernel="ddim")
    with pytest.raises(ValueError, match="Unknown prediction type 'sample'"):
        kernels.ddim(0.5, 0.6, 0.0, "sample")
