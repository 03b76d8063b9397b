"""Kinds of folders within the families: distilled, without a part, other schedulers, other autoencoders; and
folders that are damaged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from pipeline_runs import chain_of, diffusers_pipeline, our_pictures, pipeline_pictures
from tiny_pipelines import write_pipeline
from wan_names import original_layout

from rlr_core.config import SamplerConfig
from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError


def check_pictures(family, folder, guidance=3.0, **parts):
    model = load_model(folder, device="cpu")
    theirs = pipeline_pictures(family, diffusers_pipeline(family, folder, **parts), model, guidance)
    torch.testing.assert_close(our_pictures(model, guidance), theirs, rtol=0, atol=1e-4)
    return model


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_flux_schnell_has_no_guidance(tmp_path):
    folder = write_pipeline("flux", tmp_path, guidance_embeds=False)
    change(folder / "scheduler/scheduler_config.json", use_dynamic_shifting=False, shift=1.0)
    model = check_pictures("flux", folder)
    assert model.guidance_kind == "none"
    assert not chain_of(model, guidance=3.0)[0].guided


@pytest.mark.slow
def test_a_distilled_klein_has_no_guidance(tmp_path):
    model = check_pictures("flux2", write_pipeline("flux2", tmp_path, distilled=True))
    assert model.guidance_kind == "none"


def test_stable_diffusion_3_runs_without_t5(tmp_path):
    folder = write_pipeline("stable-diffusion-3", tmp_path)
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
    change(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    check_pictures("stable-diffusion-3", folder, text_encoder_3=None, tokenizer_3=None)


@pytest.mark.slow
def test_stable_diffusion_3_shifts_with_the_size_where_its_scheduler_says_so(tmp_path):
    folder = write_pipeline("stable-diffusion-3", tmp_path)
    change(folder / "scheduler/scheduler_config.json", use_dynamic_shifting=True)
    model = check_pictures("stable-diffusion-3", folder)
    small, large = (
        [step.timestep for step in model.schedule(SamplerConfig(steps=4, height=side, width=side))]
        for side in (16, 256)
    )
    assert large[1] > small[1]


def test_wan_2_2_5b_tells_every_patch_the_time_and_decodes_by_patches(tmp_path):
    vae = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "base_dim": 8,
           "decoder_base_dim": 8, "scale_factor_spatial": 8}  # fmt: skip
    folder = write_pipeline("wan", tmp_path, vae=vae, expand_timesteps=True)
    model = check_pictures("wan", folder)
    assert model.default_size == (704, 1280) and model.latent_scale == 8
    with pytest.raises(UserError, match="4 frames do not fit .* set frames to 5"):
        model.latent_shape(16, 32, 4)


def test_wan_with_its_published_scheduler_gets_even_shifted_levels(tmp_path):
    folder = write_pipeline("wan", tmp_path)
    settings = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "use_flow_sigmas": True,
                "prediction_type": "flow_prediction", "num_train_timesteps": 1000}  # fmt: skip
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(settings))
    steps = load_model(folder, device="cpu").schedule(SamplerConfig(steps=4, eta=0.0))
    shifted = [5 * s / (1 + 4 * s) for s in (1.0, 0.75, 0.5, 0.25)]
    assert [step.timestep for step in steps] == pytest.approx([1000 * s for s in shifted], rel=1e-5)


def in_the_original_layout(folder):
    """Put the transformer's weights into one file as ComfyUI's users have it."""
    from safetensors.torch import load, save_file

    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load(file.read_bytes())
    file.unlink()
    original = original_layout(tensors)
    save_file(original, folder / "transformer/wan2.1_t2v.safetensors")
    return original, folder / "transformer/wan2.1_t2v.safetensors"


def test_a_transformer_file_of_the_original_layout_serves_in_its_folder(tmp_path):
    from safetensors.torch import save_file

    folder = write_pipeline("wan", tmp_path)
    before = our_pictures(load_model(folder, device="cpu"))
    original, file = in_the_original_layout(folder)
    torch.testing.assert_close(our_pictures(load_model(folder, device="cpu")), before, rtol=0, atol=1e-6)
    save_file(original | {"one.more": torch.zeros(3)}, file)
    with pytest.raises(UserError, match="does not fit .*config.json"):
        load_model(folder, device="cpu")
    save_file({name: tensor for name, tensor in original.items() if name != "head.head.weight"}, file)
    with pytest.raises(UserError, match="is incomplete: weights are missing"):
        load_model(folder, device="cpu")
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in original.items()}, file)
    with pytest.raises(UserError, match="use it in ComfyUI"):
        load_model(folder, device="cpu")


def test_the_turbo_takes_no_guidance(tmp_path):
    turbo, base = (
        load_model(write_pipeline("z-image", tmp_path / name), device="cpu").guidance_kind
        for name in ("Z-Image-Turbo", "Z-Image")
    )
    assert (turbo, base) == ("none", "cfg")


@pytest.mark.slow
def test_animatediff_is_put_together_from_a_plain_unet_and_a_motion_adapter(tmp_path):
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    whole = write_pipeline("animatediff", tmp_path / "whole")
    apart = shutil.copytree(whole, tmp_path / "apart")
    unet = UNetMotionModel.from_pretrained(whole / "unet")
    plain = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
    )  # fmt: skip
    own = {name: t for name, t in unet.state_dict().items() if "motion_modules" not in name}
    plain.load_state_dict(own)
    shutil.rmtree(apart / "unet")
    plain.save_pretrained(apart / "unet")
    MotionAdapter.from_pretrained(whole / "motion_adapter").save_pretrained(apart / "motion_adapter")
    change(apart / "model_index.json", unet=["diffusers", "UNet2DConditionModel"])
    pictures = [our_pictures(load_model(folder, device="cpu")) for folder in (whole, apart)]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-6)


def test_more_frames_than_animatediff_knows_are_refused(tmp_path):
    model = load_model(write_pipeline("animatediff", tmp_path), device="cpu")
    with pytest.raises(UserError, match="at most 32 frames, not 33"):
        model.latent_shape(16, 16, 33)


@pytest.fixture
def flux(tmp_path_factory):
    return write_pipeline("flux", tmp_path_factory.mktemp("flux"))


@pytest.mark.parametrize(
    "part", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer_2", "scheduler"]
)
def test_a_folder_with_a_missing_part_names_it(flux, part):
    shutil.rmtree(flux / part)
    with pytest.raises(UserError, match=f"is incomplete: no {part}/"):
        load_model(flux, device="cpu")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
def test_weights_that_are_cut_off_are_refused_when_the_folder_is_loaded(flux, part):
    (file,) = (flux / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is cut off"):
        load_model(flux, device="cpu")


def test_an_old_torch_is_refused(flux, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    with pytest.raises(UserError, match="needs PyTorch 2.5 or newer; this is 2.4.1"):
        load_model(flux, device="cpu")


def test_a_model_that_main_memory_cannot_hold_is_refused_with_numbers(flux, monkeypatch):
    import psutil

    class Memory:
        available = 100_000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(UserError, match=r"transformer take .* GiB of main memory in float32, and 0.0 GiB are "
                                        r"free; set dtype to bf16"):  # fmt: skip
        load_model(flux, device="cpu")
    with pytest.raises(UserError, match="in bfloat16, and 0.0 GiB are free.$"):
        load_model(flux, device="cpu", dtype="bf16")
    Memory.available = 2**30
    model = load_model(flux, device="cpu")
    Memory.available = 100
    with pytest.raises(UserError, match="text_encoder_2 take"):
        model.encode_prompts(["a"])


def test_weights_that_are_missing_are_not_filled_with_noise(flux):
    from safetensors.torch import load, save_file

    for part, load_part in (
        ("text_encoder_2", lambda: load_model(flux, device="cpu").encode_prompts(["a"])),
        ("transformer", lambda: load_model(flux, device="cpu")),
    ):
        (file,) = (flux / part).glob("*.safetensors")
        tensors = load(file.read_bytes())
        gone = next(name for name in tensors if "attn" in name.lower() or "SelfAttention" in name)
        save_file({name: t for name, t in tensors.items() if name != gone}, file, {"format": "pt"})
        with pytest.raises(UserError, match="1 weights are missing"):
            load_part()


def test_parts_of_another_kind_are_refused_in_a_sentence(flux):
    change(flux / "model_index.json", text_encoder_2=["os", "system"])
    with pytest.raises(UserError, match="is system, not T5EncoderModel"):
        load_model(flux, device="cpu").encode_prompts(["a"])
    change(flux / "model_index.json", text_encoder_2="nonsense")
    with pytest.raises(UserError, match="is of no known class, not T5EncoderModel"):
        load_model(flux, device="cpu").encode_prompts(["a"])
    (flux / "scheduler/scheduler_config.json").write_text("[]")
    with pytest.raises(UserError, match="scheduler in .* cannot be read"):
        load_model(flux, device="cpu")
    shutil.copytree(flux / "vae", flux / "transformer", dirs_exist_ok=True)
    with pytest.raises(UserError):
        load_model(flux, device="cpu")


def test_models_for_another_purpose_are_refused(tmp_path):
    with pytest.raises(UserError, match="has embedded guidance"):
        load_model(write_pipeline("flux2", tmp_path / "a", guidance_embeds=True), device="cpu")
    with pytest.raises(UserError, match="makes videos from pictures"):
        load_model(write_pipeline("wan", tmp_path / "b", in_channels=8), device="cpu")
