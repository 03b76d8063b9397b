"""The family samples as KSampler does, whatever the architecture, the schedule and the prompts' lengths."""

from __future__ import annotations

import math

import pytest
import torch
from native_models import NAMES
from native_runs import TEXTS, chain_of, family, ksampler, noise_of, relative

SCHEDULERS = [
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
]


def sampled(native, sockets, scheduler, steps, guidance):
    """Latents of the family and of KSampler from the same noise."""
    from rlr_core.diffusion.rollout import rollout

    model = family(native, sockets, scheduler=scheduler)
    noise = noise_of(model)
    wanted = ksampler(sockets, noise.initial(), scheduler, steps, guidance)
    with native.running(model):
        chain, conditioning = chain_of(model, steps, guidance=guidance)
        found = rollout(chain, noise, conditioning).final
        found = model.base.process_latent_out(found)
    return found, wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_trajectory_without_noise_is_ksamplers_euler(native, build, name):
    found, wanted = sampled(native, build(name), "simple", 6, 2.0)
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("name", ["sd15", "sdxl-edm", "flux", "wan21"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_is_comfyuis(native, build, name, scheduler):
    found, wanted = sampled(native, build(name), scheduler, 5, 1.0)
    assert relative(found, wanted) < 5e-5


def test_what_nodes_put_in_place_of_the_sampling_counts(native, build):
    import comfy.model_sampling

    sockets = build("sd3")

    class Shifted(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    shifted = Shifted(sockets.model.model.model_config)
    shifted.set_parameters(shift=7.0)
    plain, _ = sampled(native, sockets, "simple", 4, 1.0)
    sockets.model = sockets.model.clone()
    sockets.model.add_object_patch("model_sampling", shifted)
    found, wanted = sampled(native, sockets, "simple", 4, 1.0)
    assert relative(found, wanted) < 1e-5 < relative(found, plain)


@pytest.mark.parametrize("name", ["sd15", "flux", "cosmos"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_noisy_steps_keep_the_forward_process(native, build, name, eta):
    """With D = x_0 the latents of every step are x_0 and noise in the forward process's own measure."""
    from rlr_core.config import SamplerConfig

    model = family(native, build(name))
    steps = model.schedule(SamplerConfig(steps=12, eta=eta))
    flow = name == "flux"
    levels = [(1 - s if flow else 1.0, s, s.scale) for s in (step.timestep for step in steps)] + [
        (1.0, 0.0, 1.0)
    ]
    for step, before, after in zip(steps, levels, levels[1:], strict=False):
        (signal, noise, scale), (next_signal, next_noise, next_scale) = before, after
        assert step.a * signal / scale + step.b == pytest.approx(next_signal / next_scale, abs=1e-9)
        spread = math.hypot(step.a * noise / scale, step.sigma)
        assert spread == pytest.approx(next_noise / next_scale, rel=1e-9, abs=1e-9)
    assert any(step.sigma > 0 for step in steps) == (eta > 0)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_levels_of_the_forward_process_are_where_the_chain_passes(native, build, name):
    """x_t = alpha x_0 + sigma noise has the scale of the chain: the denoiser sees ComfyUI's own latents."""
    model = family(native, build(name))
    levels = [model.noise_level(share / 10) for share in range(11)]
    sigmas = [level.sigma for level in levels]
    assert sigmas == sorted(sigmas) and sigmas[-1] == pytest.approx(1, abs=0.01)
    assert sigmas[0] < 0.05 and levels[0].alpha > 0.95
    for level in levels:
        if name == "sd15":
            assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
            assert level.sigma / level.alpha == pytest.approx(float(level.timestep))
        else:
            assert level.alpha + level.sigma == pytest.approx(1)


def test_prompts_of_unequal_length_do_not_see_each_other(native, build):
    model = family(native, build("qwen-image"))
    with native.running(model), torch.no_grad():
        rows = model.encode_prompts([*TEXTS, ""])["row"]
        x = torch.randn(4, *model.latent_shape(*model.default_size))
        together = model.denoise(x, 0.7, {"row": rows})
        assert len(model.book.groups(model.base, rows.flatten().tolist(), x.shape[1:], x.device)) > 1
        for place in range(4):
            alone = model.denoise(x[[place]], 0.7, {"row": rows[[place]]})
            torch.testing.assert_close(alone, together[[place]], rtol=1e-4, atol=1e-5)


def test_a_prompt_is_encoded_once(native, build):
    sockets = build("sd15")
    calls = []
    encode = sockets.clip.encode_from_tokens_scheduled
    sockets.clip.encode_from_tokens_scheduled = lambda text: calls.append(text) or encode(text)
    model = family(native, sockets)
    first = model.encode_prompts(["a", "b", "a"])["row"].flatten().tolist()
    second = model.encode_prompts(["b", "c"])["row"].flatten().tolist()
    assert (first, second, calls) == ([0, 1, 0], [1, 2], ["a", "b", "c"])


@pytest.mark.parametrize("name", ["sd15", "wan21", "flux"])
def test_pictures_are_those_of_the_stock_decoder(native, build, name):
    sockets = build(name)
    model = family(native, sockets)
    latents = torch.randn(2, *model.latent_shape(*model.default_size))
    with torch.inference_mode():
        stock = sockets.vae.decode(sockets.model.model.process_latent_out(latents.clone()))
    with native.running(model), torch.no_grad():
        pixels = model.decode(latents)
    frames = pixels if pixels.ndim == 5 else pixels[:, None]  # [B, F, 3, H, W]
    stock = stock if stock.ndim == 5 else stock[:, None]
    assert torch.equal(frames.movedim(2, -1), stock)
    assert pixels.shape[-2:] == model.default_size and frames.shape[1] == model.frames


def test_sizes_and_frames_are_the_latents(native, build):
    from rlr_core.errors import UserError

    model = family(native, build("wan21"))
    assert (model.default_size, model.frames) == ((32, 32), 5)
    assert model.latent_shape(32, 32) == (16, 2, 4, 4)
    assert model.latent_shape(48, 64, frames=5) == (16, 2, 6, 8)
    for size in [(36, 32, 1), (32, 32, 9)]:
        with pytest.raises(UserError):
            model.latent_shape(*size)


def test_a_latent_of_a_stock_node_takes_the_models_channels(native, build):
    sockets = build("sd3")
    sockets.latent = {"samples": torch.zeros(1, 4, 8, 8)}
    assert family(native, sockets).latent_shape(16, 16) == (16, 8, 8)
