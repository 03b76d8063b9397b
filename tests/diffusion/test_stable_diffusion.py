"""Stable Diffusion as a family: the same numbers as diffusers' own pipeline and schedulers."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from tiny_sd import write_tiny_sd
from torch.utils._python_dispatch import TorchDispatchMode

from rlr_core.config import SamplerConfig
from rlr_core.diffusion.models.loading import load_model
from rlr_core.diffusion.rollout import Noise
from rlr_core.errors import UserError
from rlr_core.lora import apply_lora, attach


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        prediction: write_tiny_sd(tmp_path_factory.mktemp(prediction), prediction)
        for prediction in ("epsilon", "v_prediction")
    }


@pytest.fixture(scope="module")
def pipeline(folders):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folders["epsilon"], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def loaded(folders):
    return load_model(folders["epsilon"], device="cpu")


@pytest.fixture
def model(loaded):
    """The loaded model; what a test changes in its settings is put back."""
    config = dict(loaded.scheduler_config)
    yield loaded
    loaded.scheduler_config = config


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the schedule ---

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_steps_are_those_of_diffusers_ddim(model, prediction, set_alpha_to_one, zero_snr, spacing):
    from diffusers import DDIMScheduler

    config = BETAS | {
        "prediction_type": prediction,
        "set_alpha_to_one": set_alpha_to_one,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" else 0,
    }
    model.scheduler_config = config
    for count, eta in itertools.product((2, 10, 20, 30, 50), (0.0, 0.5, 1.0)):
        sampler = SamplerConfig(steps=count, eta=eta)
        if zero_snr and prediction == "epsilon" and spacing != "leading":
            with pytest.raises(UserError, match="zero terminal SNR"):
                model.schedule(sampler)
            continue
        scheduler = DDIMScheduler(**config, clip_sample=False)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # its float32 step errs by up to 1e-3
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
        scheduler.set_timesteps(count)
        steps = model.schedule(sampler)
        assert [step.timestep for step in steps] == scheduler.timesteps.tolist()
        for step in steps:
            t = int(step.timestep)
            if scheduler.alphas_cumprod[t] == 0 and eta == 1:
                continue  # the root of a rounded zero: NaN or not in diffusers; test_kernels has the value
            x, output, noise = latents(3, 256, seed=t).double().unbind()
            expected = scheduler.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
            ours = step.a * x + step.b * output + step.sigma * noise
            scale = max(abs(step.a), abs(step.b), 1.0)  # both are large where alpha is small
            assert (ours - expected).abs().max() < 1e-7 * scale


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_gives_that_many(model, spacing):
    model.scheduler_config = BETAS | {"timestep_spacing": spacing, "prediction_type": "v_prediction"}
    for count in (2, 3, 7, 61, 103, 233, 1000):  # 61, 103 and 233 are one too many in diffusers, trailing
        steps = model.schedule(SamplerConfig(steps=count))
        assert len(steps) == count and steps[-1].timestep >= 0


@pytest.mark.parametrize("set_alpha_to_one, sigma", [(False, 0.0207), (True, 0.0)])
def test_the_last_step_is_noisy_only_if_the_model_says_so(model, set_alpha_to_one, sigma):
    model.scheduler_config |= {"set_alpha_to_one": set_alpha_to_one}
    assert model.schedule(SamplerConfig(steps=20))[-1].sigma == pytest.approx(sigma, abs=1e-4)
    assert model.schedule(SamplerConfig(steps=20, last_step_noise=0.05))[-1].sigma == 0.05


def test_a_scheduler_of_another_class_is_read_like_diffusers_reads_it(model):
    """A v1.5 folder names PNDM; settings that DDIM has no use for do no harm."""
    model.scheduler_config = BETAS | {"_class_name": "PNDMScheduler", "skip_prk_steps": True,
                                      "steps_offset": 1, "set_alpha_to_one": False,
                                      "trained_betas": None, "clip_sample": True}  # fmt: skip
    assert [s.timestep for s in model.schedule(SamplerConfig(steps=4))] == [751, 501, 251, 1]


def test_a_schedule_that_cannot_run_is_one_sentence(model):
    with pytest.raises(UserError, match="'flow_ddim' is for flow models; .* runs auto or ddim"):
        model.schedule(SamplerConfig(kernel="flow_ddim"))
    with pytest.raises(UserError, match="1000 steps do not fit its 1000 training steps"):
        model.schedule(SamplerConfig(steps=1000))
    with pytest.raises(UserError, match="1001"):
        model.schedule(SamplerConfig(steps=1001))
    model.scheduler_config |= {"prediction_type": "sample"}
    with pytest.raises(UserError, match="'sample'"):
        model.schedule(SamplerConfig())


# --- the networks ---


def test_prompts_are_encoded_as_in_diffusers_pipeline(model, pipeline):
    prompts = ["a photo of a cat", "", "red circle above blue square"] * 15  # more than one batch
    ours = model.encode_prompts(prompts)["prompt"]
    theirs = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)[0]
    assert ours.shape == (45, 16, 16) and not ours.requires_grad
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(model):
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 16 tokens"):
        long, short = model.encode_prompts(["red " * 40, "red"])["prompt"]
    assert long.shape == short.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_prompts(["red " * 14])


def test_released_text_encoders_still_encode(model):
    before = model.encode_prompts(["a cat"])["prompt"]
    model.release_text_encoders()
    assert torch.equal(model.encode_prompts(["a cat"])["prompt"], before)


def test_prompts_are_token_ids_while_an_adapter_is_in_the_text_encoder(folders):
    model = load_model(folders["epsilon"], device="cpu")
    prompts = ["a photo of a cat", ""]
    before = model.encode_prompts(prompts)
    x = latents(2, 4, 8, 8)
    output = model.denoise(x, 401.0, before)
    adapter = attach(model, rank=2, text_encoder=True)
    tokens = model.encode_prompts(prompts)
    assert {name: (rows.shape, rows.dtype) for name, rows in tokens.items()} == {
        "tokens": ((2, 16), torch.int64)
    }
    assert torch.equal(model.denoise(x, 401.0, tokens), output)
    adapter.detach()
    assert torch.equal(model.encode_prompts(prompts)["prompt"], before["prompt"])
    attach(model, rank=2)
    assert torch.equal(model.encode_prompts(prompts)["prompt"], before["prompt"])


def test_a_step_with_an_adapted_text_encoder_never_waits_for_the_device(folders):
    """No operation that needs a value on the CPU, forwards or backwards."""
    model = load_model(folders["epsilon"], device="cpu")
    adapter = attach(model, rank=2, text_encoder=True)
    rows = model.encode_prompts(["a cat", "a dog"])
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            seen.add(operation.overloadpacket.__name__)
            return operation(*args, **(kwargs or {}))

    with Watch():
        output = model.denoise(latents(2, 4, 8, 8), 401.0, rows)
        torch.autograd.grad(output.sum(), adapter.parameters())
    assert "embedding" in seen
    assert not seen & {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}


def test_the_text_encoders_names_are_the_same_however_transformers_nests_it(folders):
    """Older versions have the layers one level down."""

    class Nested(torch.nn.Module):
        def __init__(self, text_model):
            super().__init__()
            self.text_model = text_model

        def forward(self, tokens):
            return self.text_model(tokens)

    state = {}
    for nested in (False, True):
        model = load_model(folders["epsilon"], device="cpu")
        if nested:
            inner = getattr(model.text_encoder, "text_model", model.text_encoder)
            model.text_encoder = Nested(inner)
        before = dict(model.text_encoder.named_modules())
        adapter = attach(model, rank=2, text_encoder=True)
        state[nested] = adapter.state_dict()
        assert "tokens" in model.encode_prompts(["a cat"])
        adapter.detach()
        assert dict(model.text_encoder.named_modules()) == before
    assert list(state[True]) == list(state[False])


def test_pictures_with_an_adapted_text_encoder_are_those_of_diffusers_pipeline(folders, tmp_path):
    from diffusers import StableDiffusionPipeline

    from rlr_core.evaluation.sampling import sample

    model = load_model(folders["epsilon"], device="cpu")
    adapter = attach(model, rank=2, alpha=3, text_encoder=True)
    for index, parameter in enumerate(adapter.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(index))
    path = adapter.save(tmp_path / "x.safetensors")
    adapter.detach()
    sampler = SamplerConfig(steps=4, eta=0.0, guidance=4.0, height=16, width=16)
    base = sample(model, ["a cat"], [3], sampler)
    apply_lora(model, path)
    ours = sample(model, ["a cat"], [3], sampler)
    pipeline = StableDiffusionPipeline.from_pretrained(folders["epsilon"], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(path)
    start = Noise([3], model.latent_shape(16, 16)).initial()
    theirs = pipeline("a cat", latents=start, num_inference_steps=4, output_type="pt", guidance_scale=4.0,
                      height=16, width=16).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (ours - base).abs().max() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_without_noise_gives_the_picture_of_diffusers_pipeline(folders, prediction, guidance):
    from diffusers import StableDiffusionPipeline

    model = load_model(folders[prediction], device="cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(folders[prediction], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    start = latents(2, *model.latent_shape(16, 16))
    theirs = pipeline(["a cat", "a red circle"], latents=start, num_inference_steps=5, output_type="pt",
                      guidance_scale=guidance, height=16, width=16).images  # fmt: skip
    rows = model.encode_prompts(["", "a cat", "a red circle"])["prompt"]
    x = start
    with torch.no_grad():
        for step in model.schedule(SamplerConfig(steps=5, eta=0.0)):
            output = model.denoise(x, step.timestep, {"prompt": rows[1:]})
            if guidance != 1:
                base = model.denoise(x, step.timestep, {"prompt": rows[[0, 0]]})
                output = base + guidance * (output - base)
            x = step.a * x + step.b * output
        ours = model.decode(x)
    torch.testing.assert_close(ours.clamp(0, 1), theirs, rtol=0, atol=1e-4)


def test_pixels_are_not_clamped_and_carry_a_gradient(model):
    x = (30 * latents(1, 4, 8, 8)).requires_grad_()
    pixels = model.decode(x)
    assert pixels.shape == (1, 3, 16, 16) and pixels.min() < 0
    (gradient,) = torch.autograd.grad(pixels.sum(), x)
    assert gradient.abs().sum() > 0


def test_weights_are_frozen_and_nothing_is_random(model):
    networks = (model.unet, model.vae, model.text_encoder)
    assert not any(p.requires_grad for network in networks for p in network.parameters())
    assert not any(module.training for network in networks for module in network.modules())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_weights_give_float32_outputs_near_the_float32_model(folders, model, dtype):
    half = load_model(folders["epsilon"], device="cpu", dtype=dtype)
    assert {p.dtype for p in half.unet.parameters()} == {half.dtype}
    x = latents(2, 4, 8, 8)
    prompts = ["a cat", "a dog"]
    outputs = [m.denoise(x, 401.0, m.encode_prompts(prompts)) for m in (model, half)]
    assert outputs[1].dtype == torch.float32
    assert 0 < (outputs[0] - outputs[1]).norm() < 0.02 * outputs[0].norm()
    assert half.decode(x).dtype == torch.float32


def test_sizes_are_multiples_of_the_latent_scale(model):
    assert model.default_size == (16, 16)
    assert model.latent_shape(32, 48) == (4, 16, 24)
    with pytest.raises(UserError, match="17 x 16 .* multiples of 2, for example 16 x 16"):
        model.latent_shape(17, 16)
    with pytest.raises(UserError, match="multiples of 2"):
        model.latent_shape(0, 16)


# --- gradient checkpointing ---


def saved_bytes_and_gradients(model, adapter):
    """Bytes that one step and a decode keep for the backward pass, and all their gradients."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = latents(2, 4, 16, 16).requires_grad_()
    rows = model.encode_prompts(["a cat", "a dog"])
    networks = (model.unet, model.vae, model.text_encoder)
    weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        score = model.decode(model.denoise(x, 301.0, rows)).square().mean()
    gradients = torch.autograd.grad(score, [x, *adapter.parameters()])
    return sum(size for place, size in kept.items() if place not in weights), gradients


@pytest.mark.slow
def test_gradient_checkpointing_keeps_the_text_encoders_activations_out_of_memory(folders):
    """With an adapter in it, a step keeps a little more: the token ids and the embeddings."""
    model = load_model(folders["epsilon"], device="cpu")
    kept = {}
    for text_encoder in (False, True):
        adapter = attach(model, rank=2, text_encoder=text_encoder)
        for checkpointing in (False, True):
            model.gradient_checkpointing(checkpointing)
            kept[text_encoder, checkpointing] = saved_bytes_and_gradients(model, adapter)[0]
        adapter.detach()
    more = {way: kept[True, way] - kept[False, way] for way in (False, True)}
    assert 0 <= more[True] < more[False] / 10


@pytest.mark.parametrize("text_encoder", [False, True])
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(folders, text_encoder):
    model = load_model(folders["epsilon"], device="cpu")
    adapter = attach(model, rank=2, targets="all", text_encoder=text_encoder)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    plain_bytes, plain = saved_bytes_and_gradients(model, adapter)
    model.gradient_checkpointing(True)
    bytes_, gradients = saved_bytes_and_gradients(model, adapter)
    assert bytes_ < plain_bytes / 3
    for gradient, expected in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    model.gradient_checkpointing(False)
    # counted by address, and an address may be used twice
    assert saved_bytes_and_gradients(model, adapter)[0] == pytest.approx(plain_bytes, rel=1e-4)


def test_denoise_adds_nothing_to_the_unet_call(model, monkeypatch):
    """One UNet call per evaluation, its own arguments only, and a timestep made on the device."""
    calls = []
    forward = type(model.unet).forward

    def counted(self, sample, timestep, **keywords):
        calls.append((timestep.device.type, sorted(keywords)))
        return forward(self, sample, timestep, **keywords)

    monkeypatch.setattr(type(model.unet), "forward", counted)
    model.denoise(latents(1, 4, 8, 8), 10.0, model.encode_prompts([""]))
    assert calls == [("cpu", ["encoder_hidden_states", "return_dict"])]
