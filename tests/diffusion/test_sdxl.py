"""Stable Diffusion XL: its checkpoint files, its two text encoders, the names in its LoRA files."""

from __future__ import annotations

import pytest
import torch
from adapters import fill
from pipeline_runs import our_pictures, pipeline_pictures
from safetensors.torch import load_file, save_file
from tiny_pipelines import write_pipeline
from tiny_sdxl_checkpoint import write_tiny_sdxl_checkpoint

from rlr_core.diffusion.models.loading import load_model
from rlr_core.diffusion.models.sdxl_checkpoint import unet_config
from rlr_core.errors import UserError
from rlr_core.lora import apply_lora, attach


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("sdxl") / "model.safetensors"
    return path, write_tiny_sdxl_checkpoint(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline("stable-diffusion-xl", tmp_path_factory.mktemp("folder"))


def test_a_checkpoint_file_loads_every_weight(checkpoint):
    path, networks = checkpoint
    model = load_model(path, device="cpu", dtype="fp32")
    assert model.family == "stable-diffusion-xl" and model.default_size == (256, 256)
    ours = (model.unet, model.vae, model.text_encoder, model.text_encoder_2)
    for loaded, original in zip(ours, networks, strict=True):
        state, expected = loaded.state_dict(), original.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_checkpoint_file_gives_the_pictures_of_a_pipeline_of_its_networks(checkpoint):
    """Equal weights are not enough: the sizes that no shape tells (heads, activation) must be right too."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    path, (unet, vae, first, second) = checkpoint
    model = load_model(path, device="cpu", dtype="fp32")
    pipeline = StableDiffusionXLPipeline(
        unet=unet, vae=vae, text_encoder=first, text_encoder_2=second, add_watermarker=False,
        tokenizer=model.tokenizers[0], tokenizer_2=model.tokenizers[1],
        scheduler=DDIMScheduler.from_config(model.scheduler_config, clip_sample=False),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline_pictures("stable-diffusion-xl", pipeline, model, 3.0)
    torch.testing.assert_close(our_pictures(model, 3.0), theirs, rtol=0, atol=1e-4)


def test_the_second_tokenizer_pads_as_openclip_was_trained(checkpoint):
    first, second = load_model(checkpoint[0], device="cpu").tokenizers
    ids = [tokenizer("a cat", padding="max_length").input_ids for tokenizer in (first, second)]
    assert ids[0][:4] == ids[1][:4] == [49406, 320, 2368, 49407]
    assert (set(ids[0][4:]), set(ids[1][4:])) == ({49407}, {0})


def test_derived_configurations_are_the_published_ones():
    """A full-size UNet on the meta device: what the header tells is what diffusers' folder says."""
    from diffusers import UNet2DConditionModel
    from tiny_checkpoint import ldm_unet
    from tiny_sdxl_checkpoint import _label

    published = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**published)
    shapes = {
        f"model.diffusion_model.{_label(name)}": tuple(tensor.shape)
        for name, tensor in ldm_unet(unet).items()
    }
    config = unet_config(shapes, "epsilon")
    for name, value in published.items():
        assert config[name] == (list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize(
    "gone",
    ["model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.1.model.text_projection",
     "conditioner.embedders.1.model.ln_final.bias",
     "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
     "first_stage_model.decoder.mid.block_1.norm1.bias"],
)  # fmt: skip
def test_a_checkpoint_with_missing_weights_is_refused(checkpoint, tmp_path, gone):
    state = load_file(checkpoint[0])
    assert gone in state
    save_file({name: tensor for name, tensor in state.items() if name != gone}, tmp_path / "gap.safetensors")
    with pytest.raises(UserError, match="is incomplete|weights are missing"):
        load_model(tmp_path / "gap.safetensors", device="cpu")


def test_the_refiner_says_that_it_is_one(checkpoint, tmp_path):
    state = load_file(checkpoint[0])
    refiner = {name: t for name, t in state.items() if "embedders.0.transformer" not in name}
    save_file(refiner, tmp_path / "refiner.safetensors")
    with pytest.raises(UserError, match="is the refiner"):
        load_model(tmp_path / "refiner.safetensors", device="cpu")


def test_no_prompt_is_zeros_where_the_folder_says_so(folder):
    model = load_model(folder, device="cpu")
    rows = model.encode_prompts(["", "a cat"])
    assert not rows["prompt"][0].any() and not rows["pooled"][0].any() and rows["prompt"][1].any()
    model.zero_empty_prompt = False
    assert model.encode_prompts([""])["prompt"].any()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_lora_with_both_text_encoders_is_what_diffusers_loads(folder, layout, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    model = load_model(folder, device="cpu")
    base = our_pictures(model, 3.0)
    adapter = fill(attach(model, rank=4, alpha=10, text_encoder=True), std=0.2)
    assert {"tokens", "tokens_2", "filled"} == model.encode_prompts(["a cat"]).keys()
    tuned, file = our_pictures(model, 3.0), adapter.save(tmp_path / "lora.safetensors", layout)
    adapter.detach()
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(file)
    theirs = pipeline_pictures("stable-diffusion-xl", pipeline, model, 3.0)
    assert (tuned - base).abs().max() > 0.01
    torch.testing.assert_close(tuned, theirs, rtol=0, atol=1e-5)
    apply_lora(model, file)
    torch.testing.assert_close(our_pictures(model, 3.0), tuned, rtol=0, atol=1e-5)


def test_names_of_the_original_code_are_read(folder, tmp_path):
    model = load_model(folder, device="cpu")
    adapter = fill(attach(model, rank=4))
    tuned, file = our_pictures(model), adapter.save(tmp_path / "lora.safetensors")
    adapter.detach()
    renamed = {"down_blocks_1_attentions_0": "input_blocks_3_1", "mid_block_attentions_0": "middle_block_1",
               "up_blocks_0_attentions_0": "output_blocks_0_1",
               "up_blocks_0_attentions_1": "output_blocks_1_1"}  # fmt: skip
    state = load_file(file)
    for old, new in renamed.items():
        assert any(old in name for name in state)
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    assert not any("attentions" in name for name in state)
    save_file(state, tmp_path / "original.safetensors")
    apply_lora(model, tmp_path / "original.safetensors")
    torch.testing.assert_close(our_pictures(model), tuned, rtol=0, atol=1e-6)
