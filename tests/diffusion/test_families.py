"""What every family promises, asked of two that share nothing: Stable Diffusion and a flow transformer."""

from __future__ import annotations

import pytest
import torch
from tiny_flow import SHIFT, TinyFlow, write_tiny_flow
from tiny_sd import write_tiny_sd

from rlr_core.config import SamplerConfig
from rlr_core.diffusion import kernels
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.models.stable_diffusion import StableDiffusion
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError
from rlr_core.lora import attach

FAMILIES = {StableDiffusion: write_tiny_sd, TinyFlow: lambda folder: write_tiny_flow(folder / "m.tinyflow")}
CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.family)
def path(request, tmp_path_factory):
    return request.param, FAMILIES[request.param](tmp_path_factory.mktemp(request.param.family))


@pytest.fixture(scope="module")
def model(path):
    family, place = path
    return family.load(place, CPU, FLOAT)


def latents(model, count=2, seed=0):
    shape = model.latent_shape(*model.default_size)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_a_family_recognizes_its_own_files_only(path):
    family, place = path
    assert [other for other in FAMILIES if other.recognizes(place)] == [family]


def test_loading_twice_gives_the_same_model(path, model):
    family, place = path
    again = family.load(place, CPU, FLOAT)
    x = latents(model)
    outputs = [m.denoise(x, 500.0, m.encode_prompts(["a cat", "a dog"])) for m in (model, again)]
    assert torch.equal(*outputs) and torch.equal(model.decode(x), again.decode(x))


def test_shapes_and_types_are_those_of_the_protocol(model):
    x = latents(model)
    rows = model.encode_prompts(["a cat", ""])
    assert all(tensor.shape[0] == 2 and not tensor.requires_grad for tensor in rows.values())
    output, pixels = model.denoise(x, 500.0, rows), model.decode(x)
    assert (output.shape, output.dtype) == (x.shape, FLOAT)
    assert (pixels.shape, pixels.dtype) == ((2, 3, *model.default_size), FLOAT)
    assert set(model.denoisers) <= model.networks.keys()
    parameters = [p for network in model.networks.values() for p in network.parameters()]
    assert parameters and not any(parameter.requires_grad for parameter in parameters)
    with pytest.raises(UserError):
        model.latent_shape(model.default_size[0] + 1, model.default_size[1])


def test_text_encoders_have_targets_and_every_layer_has_names_in_files_of_its_own(model):
    encoders = set(model.networks) - set(model.denoisers)
    assert bool(encoders) == (not isinstance(model, TinyFlow))
    if encoders:
        assert model.text_targets.keys() == model.lora_targets.keys()
    layers = model.lora_layers("all", text_encoder=bool(encoders))
    for layout in model.lora_layouts:
        names = [model.lora_key(layer, layout) for layer in layers]
        assert len(set(names)) == len(layers)


def test_the_forward_process_goes_from_picture_to_noise(model):
    levels = [model.noise_level(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(a.alpha > b.alpha and a.sigma < b.sigma for a, b in zip(levels, levels[1:], strict=False))
    assert all(a.timestep < b.timestep for a, b in zip(levels, levels[1:], strict=False))
    assert levels[0].alpha > 0.99 and levels[-1].sigma > 0.9


def test_the_output_depends_on_latents_time_and_prompt(model):
    x, rows = latents(model), model.encode_prompts(["a cat", "a cat"])
    output = model.denoise(x, 500.0, rows)
    for other in (
        model.denoise(x + 0.1, 500.0, rows),
        model.denoise(x, 250.0, rows),
        model.denoise(x, 500.0, model.encode_prompts(["red square", ""])),
    ):
        assert ((other - output).flatten(1).norm(dim=1) > 1e-3 * output.flatten(1).norm(dim=1)).all()


def test_samples_of_a_batch_do_not_see_each_other(model):
    x, prompts = latents(model, 3), ["a cat", "", "red square above a dog"]
    rows = model.encode_prompts(prompts)
    together = model.denoise(x, 500.0, rows)
    for i, prompt in enumerate(prompts):
        alone = model.denoise(x[i : i + 1], 500.0, model.encode_prompts([prompt]))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)
        chosen = {name: tensor[[i]] for name, tensor in rows.items()}
        assert torch.equal(model.denoise(x[i : i + 1], 500.0, chosen), alone)


def test_gradients_are_those_of_finite_differences(model):
    """Through decode and one denoiser call, to the latents and to the adapter, along a random direction."""
    adapter = attach(model, rank=2, targets="all")
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    x = latents(model)
    inputs = [x, *adapter.parameters()]
    starts = [tensor.detach().clone() for tensor in inputs]
    directions = [torch.randn(tensor.shape, generator=generator) for tensor in inputs]
    rows = model.encode_prompts(["a cat", "a dog"])

    def score(distance, moved):
        with torch.no_grad():
            for tensor, start, direction, moves in zip(inputs, starts, directions, moved, strict=True):
                tensor.copy_(start + distance * direction * moves)
        return model.decode(x - 0.5 * model.denoise(x, 500.0, rows)).double().square().mean()

    x.requires_grad_()
    gradients = torch.autograd.grad(score(0.0, [0] * len(inputs)), inputs)
    slopes = [float((g * d).sum()) for g, d in zip(gradients, directions, strict=True)]
    step = 1e-3
    for moved in ([1] + [0] * (len(inputs) - 1), [0] + [1] * (len(inputs) - 1)):  # latents; adapter
        difference = (score(step, moved) - score(-step, moved)).item() / (2 * step)
        slope = sum(s * moves for s, moves in zip(slopes, moved, strict=True))
        assert slope == pytest.approx(difference, rel=0.02)
    adapter.detach()


def test_schedules_have_the_asked_steps_and_noise(model):
    for count in (2, 7, 20):
        steps = model.schedule(SamplerConfig(steps=count, eta=1.0))
        times = [step.timestep for step in steps]
        assert len(steps) == count and times == sorted(times, reverse=True)
        assert all(step.sigma > 0 for step in steps[:-1])
        assert all(step.sigma == 0 for step in model.schedule(SamplerConfig(steps=count, eta=0.0)))
        assert model.schedule(SamplerConfig(steps=count, last_step_noise=0.3))[-1].sigma == 0.3


def test_a_family_runs_its_own_kernels_and_refuses_the_others(model):
    flow = isinstance(model, TinyFlow)
    own, others = kernels.FLOW_KERNELS, kernels.DIFFUSION_KERNELS
    if not flow:
        own, others = others, own
    for kernel in ("auto", *own):
        assert len(model.schedule(SamplerConfig(kernel=kernel, steps=4, eta=0.5))) == 4
    for kernel in others:
        with pytest.raises(UserError, match=own[0]):
            model.schedule(SamplerConfig(kernel=kernel))


def test_the_flow_familys_levels_are_those_of_diffusers_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    steps = TinyFlow().schedule(SamplerConfig(steps=10, eta=0.0))
    assert [step.timestep for step in steps] == pytest.approx(scheduler.timesteps.tolist(), rel=1e-6)
    sigmas = scheduler.sigmas.tolist()
    assert [step.b for step in steps] == pytest.approx(
        [after - before for before, after in zip(sigmas[:-1], sigmas[1:], strict=True)], abs=1e-6
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_chain_runs_on_either_family(model, guidance):
    chain = Chain(model, model.schedule(SamplerConfig(steps=4, eta=1.0)), guidance)
    noise = Noise([1, 2, 3], model.latent_shape(*model.default_size))
    prompts = model.encode_prompts(["", "a cat", "red square"])
    trajectory = rollout(chain, noise, Conditioning(prompts, torch.tensor([[1], [2], [1]])))
    assert trajectory.final.shape == noise.initial().shape and trajectory.final.isfinite().all()
    assert sorted(trajectory.noises) == [t for t in range(1, 5) if chain.sigma(t) > 0]


def test_checkpointing_changes_no_output(model):
    x, rows = latents(model), model.encode_prompts(["a cat", "a dog"])
    x.requires_grad_()
    before = model.denoise(x, 500.0, rows)
    model.gradient_checkpointing(True)
    assert torch.equal(model.denoise(x, 500.0, rows), before)
    model.gradient_checkpointing(False)
