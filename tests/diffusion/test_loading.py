"""load_model: folders, checkpoint files, names; and what a person reads when a path is something else."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import struct

import pytest
import tiny_flow
import torch
from safetensors.torch import load, load_file, save_file
from tiny_checkpoint import tiny_networks, write_tiny_checkpoint
from tiny_sd import write_tiny_sd

from rlr_core.config import SamplerConfig
from rlr_core.diffusion.models import loading
from rlr_core.diffusion.models.ldm_checkpoint import text_config, unet_config, vae_config
from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("something tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sd(tmp_path_factory.mktemp("tiny_sd"))


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the pipeline folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def checkpoint(request, tmp_path_factory):
    """A checkpoint file, its version and the networks it was written from."""
    path = tmp_path_factory.mktemp("checkpoint") / f"{request.param}.safetensors"
    return path, request.param, write_tiny_checkpoint(path, request.param)


# --- what loads ---


def test_a_folder_loads_without_the_network(folder):
    model = load_model(folder)
    assert model.family == "stable-diffusion" and model.name == folder.name
    assert model.unet.device.type == model.device.type


def test_a_folder_of_fp16_variant_files_loads(copy):
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (copy / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert load_model(copy, device="cpu").dtype == torch.float32


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoder_loads_whole_whichever_transformers_wrote_it(copy, folder, prefix):
    (file,) = (copy / "text_encoder").glob("*.safetensors")
    tensors = load(file.read_bytes())  # not mapped: the file is written anew
    flat = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    save_file({f"{prefix}{name}": tensor for name, tensor in flat.items()}, file, {"format": "pt"})
    model = load_model(copy, device="cpu")
    weights = {
        name.removeprefix("text_model."): weight for name, weight in model.text_encoder.named_parameters()
    }
    assert weights.keys() == flat.keys()
    assert all(torch.equal(weights[name], flat[name]) for name in flat)
    prompts = ["a cat", "a red circle"]
    original = load_model(folder, device="cpu").encode_prompts(prompts)["prompt"]
    assert torch.equal(model.encode_prompts(prompts)["prompt"], original)


def test_a_checkpoint_file_loads_every_weight_without_the_network(checkpoint):
    path, version, networks = checkpoint
    model = load_model(str(path), device="cpu", dtype="fp32")
    assert model.name == f"{version}.safetensors"
    for ours, original in zip((model.unet, model.vae, model.text_encoder), networks, strict=True):
        state, expected = ours.state_dict(), original.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_checkpoint_file_computes_what_its_networks_compute(checkpoint):
    """Equal weights are not enough: the sizes that no shape tells (heads, activation) must be right too."""
    path, version, (unet, vae, text_encoder) = checkpoint
    model = load_model(path, device="cpu")
    tokens = model.tokenizer(["a cat", ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        embedded = text_encoder(tokens)[0]
        assert torch.equal(model.encode_prompts(["a cat", ""])["prompt"], embedded)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = unet(x, 300, embedded).sample
        assert torch.equal(model.denoise(x, 300.0, {"prompt": embedded}), expected)
        pixels = vae.decode(x / 0.18215).sample / 2 + 0.5
        torch.testing.assert_close(model.decode(x), pixels, rtol=0, atol=1e-5)


def test_a_checkpoint_file_has_clips_tokens_and_the_trained_padding(checkpoint):
    path, version, _ = checkpoint
    tokens = load_model(path, device="cpu").tokenizer("a photo of a cat", padding="max_length").input_ids
    assert tokens[:7] == [49406, 320, 1125, 539, 320, 2368, 49407] and len(tokens) == 77
    assert set(tokens[7:]) == {49407 if version == "sd1" else 0}


def test_derived_configurations_are_the_published_ones():
    """Full-size networks on the meta device: what the header tells is what diffusers' folders say."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from tiny_checkpoint import ldm_unet, ldm_vae

    vae_settings = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    names = ("cross_attention_dim", "attention_head_dim", "use_linear_projection")
    versions = {
        "sd1": dict(zip(names, (768, 8, False), strict=True)),
        "sd2": dict(zip(names, (1024, [5, 10, 20, 20], True), strict=True)),
    }
    for version, settings in versions.items():
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**settings), AutoencoderKL(**vae_settings)
        shapes = {f"model.diffusion_model.{k}": tuple(v.shape) for k, v in ldm_unet(unet).items()}
        shapes |= {f"first_stage_model.{k}": tuple(v.shape) for k, v in ldm_vae(vae).items()}
        for config, network in ((unet_config(shapes, version, "epsilon"), unet), (vae_config(shapes), vae)):
            config.pop("_class_name")
            for key, value in config.items():
                if key != "sample_size":
                    assert value == _lists(network.config[key]), (version, key)


def _lists(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.slow
def test_v_prediction_is_found_by_mark_metadata_or_weights(tmp_path):
    def prediction(path):
        return load_model(path, device="cpu").scheduler_config["prediction_type"]

    path = tmp_path / "sd2.safetensors"
    write_tiny_checkpoint(path, "sd2")
    assert prediction(path) == "epsilon"
    state = load_file(path)
    save_file(state, path, {"modelspec.prediction_type": "v"})
    assert prediction(path) == "v_prediction"
    save_file(state | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    assert prediction(path) == "v_prediction"
    assert load_model(path, device="cpu").schedule(SamplerConfig(steps=10))[0].timestep == 999

    telling = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    from rlr_core.diffusion.models.ldm_checkpoint import prediction_type

    for spread, expected in ((0.05, "epsilon"), (0.2, "v_prediction")):
        bias = spread * torch.randn(4000, generator=torch.Generator().manual_seed(0))
        save_file({telling: bias}, tmp_path / "bias.safetensors")
        shapes = {telling: (4000,)}
        assert prediction_type(tmp_path / "bias.safetensors", "sd2", shapes, {}) == expected
        assert prediction_type(tmp_path / "bias.safetensors", "sd1", shapes, {}) == "epsilon"


def test_a_registered_family_is_found_by_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "FAMILIES", dict(loading.FAMILIES))
    path = tiny_flow.write_tiny_flow(tmp_path / "model.tinyflow", seed=3)
    with pytest.raises(UserError, match="no model that is known"):
        load_model(path)
    tiny_flow.register()
    assert load_model(path).name == "tiny-flow-3"


def test_the_built_in_model_is_loaded_by_name(folder, monkeypatch):
    import rlr_core.demo

    monkeypatch.setattr(rlr_core.demo, "model_path", lambda: folder)
    assert load_model("demo").name == "demo"


@pytest.mark.parametrize(
    "asked, dtype",
    [(None, torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), (torch.float32,) * 2],
)
def test_dtypes_are_strings_torch_types_or_the_best_for_the_device(folder, asked, dtype):
    model = load_model(folder, device="cpu", dtype=asked)
    assert model.dtype == model.unet.dtype == dtype
    assert model.vae.dtype == torch.float32  # a half-precision decoder is slow and coarse on the CPU


@pytest.mark.parametrize("capability, expected", [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_cuda_takes_bfloat16_where_the_card_has_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert loading.find_dtype(None, torch.device("cuda")) == expected


def test_loading_leaves_the_libraries_logging_as_it_was(folder):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_warning()
    load_model(folder)
    assert diffusers_logging.get_verbosity() == diffusers_logging.WARNING
    assert transformers_logging.is_progress_bar_enabled()


# --- what does not ---


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, **options)
    return str(caught.value)


def test_a_path_that_is_not_there_offers_what_could_be_meant(tmp_path):
    assert "There is no model" in refusal(tmp_path / "nothing")
    assert "Did you mean 'demo'?" in refusal("demmo")


def test_a_text_file_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "notes.safetensors").write_text("hello, this is no tensor file at all")
    assert "no model that is known here" in refusal(tmp_path / "notes.txt")
    assert "is not a .safetensors file" in refusal(tmp_path / "notes.safetensors")


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_a_checkpoint_that_is_cut_off_says_so(checkpoint, tmp_path, keep):
    data = checkpoint[0].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(len(data) * keep)])
    message = refusal(tmp_path / "cut.safetensors")
    assert "is cut off" in message and "download it again" in message


def test_a_header_that_lies_is_refused(tmp_path):
    path = tmp_path / "lie.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": "none"}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "is not a .safetensors file" in refusal(path)
    path.write_bytes(struct.pack("<Q", 2**62) + header)
    assert "is not a .safetensors file" in refusal(path)


@pytest.mark.parametrize(
    "tensors, what",
    [
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}, "is a LoRA"),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 8)}, "is a LoRA"),
        ({"first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3)}, "is a VAE alone"),
        ({"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.down_blocks.0.resnets.0.norm1.bias": (8,)},
         "is a VAE alone"),
        ({"text_model.encoder.layers.0.layer_norm1.bias": (8,)}, "is a text encoder alone"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "is a UNet without its VAE"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting or editing"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
          "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (8,)},
         "inpainting or editing"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (8, 8)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "is a Flux model"),
        ({"double_blocks.0.img_attn.qkv.weight": (8, 8), "double_stream_modulation_img.lin.weight": (8, 8)},
         "transformer of FLUX.2 alone"),
        ({"transformer_blocks.0.attn.add_q_proj.weight": (8, 8), "txt_norm.weight": (8,)}, "Qwen-Image"),
        ({"model.diffusion_model.noise_refiner.0.attention.qkv.weight": (8, 8)}, "Z-Image alone"),
        ({"blocks.0.cross_attn.q.weight": (8, 8)}, "transformer of Wan alone, which needs its text encoder"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8)}, "is a text encoder alone"),
        ({"model.layers.0.self_attn.q_proj.weight": (8, 8)}, "is a text encoder alone"),
        ({"decoder.middle.0.residual.0.gamma": (8,)}, "is a VAE alone"),
        ({"something.else": (1,)}, "no model that is known here"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(tmp_path, tensors, what):
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    message = refusal(path)
    assert what in message and "Families that can be trained: stable-diffusion" in message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantized_files_are_for_comfyui(tmp_path, dtype):
    path = tmp_path / "flux_fp8.safetensors"
    weight = torch.zeros(64, 64).to(dtype)
    save_file({"double_blocks.0.img_attn.qkv.weight": weight, "img_in.bias": torch.zeros(64)}, path)
    assert "quantized weights" in refusal(path) and "use it in ComfyUI" in refusal(path)
    for name in ("model.gguf", "renamed.safetensors"):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
        assert "GGUF file" in refusal(tmp_path / name)


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert "convert it to .safetensors" in refusal(tmp_path / "model.ckpt")


def test_a_checkpoint_with_missing_weights_is_not_filled_with_noise(checkpoint, tmp_path):
    state = load_file(checkpoint[0])
    for gone in (
        "model.diffusion_model.middle_block.0.in_layers.0.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "first_stage_model.decoder.mid.block_1.norm1.bias",
        next(name for name in state if "layers.0.mlp.fc1" in name or "resblocks.0.mlp.c_fc" in name),
    ):
        path = tmp_path / "gap.safetensors"
        save_file({name: tensor for name, tensor in state.items() if name != gone}, path)
        message = refusal(path)
        assert "is incomplete" in message or "1 weights are missing" in message, gone


def test_a_folder_without_an_index_is_no_diffusers_model(copy):
    (copy / "model_index.json").unlink()
    assert "without model_index.json" in refusal(copy)
    (copy / "model_index.json").write_text("{broken")
    assert "cannot be read" in refusal(copy)


def test_another_pipeline_is_named_with_the_families_that_work(copy):
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    message = refusal(copy)
    assert "KandinskyPipeline" in message and "stable-diffusion" in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_with_a_missing_part_names_it(copy, part):
    shutil.rmtree(copy / part)
    assert f"no {part}/" in refusal(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_with_damaged_weights_is_refused_by_name(copy, part):
    (file,) = (copy / part).glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"{file} is cut off" in refusal(copy)

    save_file(dict(list(load_file_bytes(whole, file).items())[1:]), file, {"format": "pt"})
    assert "does not fit its config.json: 1 weights are missing" in refusal(copy)

    file.rename(file.with_suffix(".bin"))
    assert "pickled weights" in refusal(copy)
    file.with_suffix(".bin").unlink()
    assert "holds no .safetensors file" in refusal(copy)


def load_file_bytes(data, path):
    path.write_bytes(data)
    return load_file(path)


def test_weights_of_another_size_are_refused(copy):
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps(config | {"cross_attention_dim": 24}))
    assert "unet" in refusal(copy)


def test_an_inpainting_folder_is_refused(copy):
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(copy / "unet") | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(copy / "unet")
    assert "takes 9 latent channels" in refusal(copy)


def test_unknown_devices_and_dtypes_name_the_known_ones(folder):
    assert "use one of float32" in refusal(folder, dtype="float8")
    assert "Did you mean 'bf16'?" in refusal(folder, dtype="bf61")
    assert "Unknown dtype torch.int8" in refusal(folder, dtype=torch.int8)
    assert "Unknown device 'gpu'" in refusal(folder, device="gpu")
    if not torch.cuda.is_available():
        assert "sees no CUDA GPU" in refusal(folder, device="cuda")


def test_fewer_bits_are_refused_where_they_cannot_be(folder, tmp_path):
    from tiny_pipelines import write_pipeline

    assert "cannot be held in 4 bits" in refusal(folder, dtype="4bit")
    assert "need a CUDA GPU, not cpu" in refusal(write_pipeline("flux", tmp_path), dtype="8bit", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="need bitsandbytes"):
            loading.check_quantization(torch.device("cuda"))


def test_text_encoder_sizes_are_read_from_the_file():
    unet, vae, text_encoder = tiny_networks("sd1")
    prefix = "cond_stage_model.transformer.text_model."
    shapes = {prefix + name.removeprefix("text_model."): tuple(tensor.shape)
              for name, tensor in text_encoder.state_dict().items()}  # fmt: skip
    config = text_config(shapes, "sd1")
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (64, 2, 49408)
