"""LoRA files: written whole or not at all, and every reader applies the whole of them."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from adapters import PROMPTS, attach, fill, output
from marks import quick
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoint import write_tiny_checkpoint
from tiny_flow import TinyFlow

from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError
from rlr_core.lora import apply_lora, load_lora, save_lora
from rlr_core.lora.attach import attach_to

# --- round trips ---


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_lora_file_reloads_exactly(tiny_model, layout, tmp_path):
    adapter = fill(attach(tiny_model, rank=4, alpha=10, targets="all"))
    tuned, state = output(tiny_model), adapter.state_dict()
    path = save_lora(adapter, tmp_path / "x.safetensors", layout)
    adapter.detach()
    loaded = apply_lora(tiny_model, path)
    assert torch.equal(output(tiny_model), tuned)
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("targets", ["attention", "attention+ff", "all"])
@pytest.mark.parametrize("text_encoder", [False, True])
def test_lora_file_reloads_in_diffusers_exactly(tiny_sd_folder, sd, layout, targets, text_encoder, tmp_path):
    from diffusers import StableDiffusionPipeline

    adapter = fill(attach(sd, rank=4, alpha=10, targets=targets, text_encoder=text_encoder))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, local_files_only=True)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def theirs():
        with torch.no_grad():
            prompts = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)[0]
            return prompts, pipeline.unet(latents, 401, prompts).sample

    base_prompts, base = theirs()
    pipeline.load_lora_weights(adapter.save(tmp_path / "x.safetensors", layout))
    prompts, tuned = theirs()
    assert torch.equal(tuned, sd.denoise(latents, 401.0, sd.encode_prompts(PROMPTS)))
    assert (tuned - base).norm() > 0.01 * base.norm()
    assert ((prompts - base_prompts).norm() > 0.01 * base_prompts.norm()) == text_encoder


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("version", quick(["sd1", "sd2"], "sd1"))
def test_the_text_encoder_of_a_checkpoint_file_reloads_exactly(version, layout, tmp_path):
    """Also of Stable Diffusion 2, whose encoder is OpenCLIP's in the file and a CLIPTextModel here."""
    write_tiny_checkpoint(tmp_path / "model.safetensors", version)
    first, second = (load_model(tmp_path / "model.safetensors", device="cpu") for _ in range(2))
    first.default_size = second.default_size = (64, 64)
    base = output(first)
    adapter = fill(attach(first, rank=4, alpha=10, text_encoder=True))
    path = adapter.save(tmp_path / "x.safetensors", layout)
    apply_lora(second, path)
    assert torch.equal(output(second), output(first)) and not torch.equal(output(first), base)
    starts = {"kohya": "lora_te_text_model_encoder_layers_", "diffusers": "text_encoder.text_model.encoder."}
    text = [name for name in load_lora(path).modules if "_proj" in name]
    assert len(text) == 2 * 4 and all(name.startswith(starts[layout]) for name in text)


@pytest.mark.parametrize(
    "old, new",
    [("lora_te_", "lora_te1_"), ("lora_te_text_model_", "lora_te_"), ("lora_te_text_model_", "lora_te1_"),
     ("text_encoder.text_model.", "text_encoder.")],
)  # fmt: skip
def test_other_spellings_of_the_text_encoders_layers_are_read(tiny_sd_folder, sd, old, new, tmp_path):
    layout = "kohya" if old.startswith("lora") else "diffusers"
    adapter = fill(attach(sd, rank=4, text_encoder=True))
    path = adapter.save(tmp_path / "x.safetensors", layout)
    state = {name.replace(old, new): tensor for name, tensor in load_file(path).items()}
    assert state.keys() != load_file(path).keys()
    save_file(state, tmp_path / "y.safetensors")
    other = load_model(tiny_sd_folder, device="cpu")
    apply_lora(other, tmp_path / "y.safetensors")
    assert torch.equal(output(other), output(sd))


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_ranks_and_alphas_that_differ_between_modules_survive(tiny_sd_folder, sd, layout, tmp_path):
    from diffusers import StableDiffusionPipeline

    paths = sd.lora_layers("attention+ff", text_encoder=True)
    adapter = fill(attach_to(sd, {path: (2 + i % 3, 1.0 + i % 2) for i, path in enumerate(paths)}))
    tuned = output(sd)
    path = adapter.save(tmp_path / "x.safetensors", layout)
    adapter.detach()
    again = apply_lora(sd, path)
    assert torch.equal(output(sd), tuned)
    assert {p: m.rank for p, m in again.modules().items()} == {p: 2 + i % 3 for i, p in enumerate(paths)}
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, local_files_only=True)
    pipeline.load_lora_weights(path)
    sd.unet, sd.text_encoder = pipeline.unet, pipeline.text_encoder
    assert torch.equal(output(sd), tuned)


def test_kohya_names_are_those_that_comfyui_maps(sd, tmp_path):
    """lora_unet_<module path with _>, three tensors a module, alpha a true scalar."""
    adapter = fill(attach(sd, rank=4, alpha=10, targets="attention"))
    tensors = load_file(adapter.save(tmp_path / "x.safetensors"))
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert {name for name in tensors if name.startswith(key)} == {
        f"{key}.alpha", f"{key}.lora_down.weight", f"{key}.lora_up.weight"
    }  # fmt: skip
    assert len(tensors) == 3 * len(adapter.layers)
    assert tensors[f"{key}.alpha"].shape == () and tensors[f"{key}.alpha"] == 10
    assert tensors[f"{key}.lora_down.weight"].shape == (4, 16)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_transformers_are_written_under_their_own_prefix(tmp_path):
    adapter = attach(TinyFlow(), rank=2)
    kohya = load_file(adapter.save(tmp_path / "k.safetensors"))
    diffusers = load_file(adapter.save(tmp_path / "d.safetensors", "diffusers"))
    assert "lora_transformer_blocks_0_self_attention_qkv.lora_down.weight" in kohya
    assert "transformer.blocks.0.self_attention.qkv.lora_A.weight" in diffusers


def test_half_size_files_lose_little(sd, tmp_path):
    adapter = fill(attach(sd, rank=4))
    tuned = output(sd)
    path = save_lora(adapter, tmp_path / "x.safetensors", dtype=torch.float16)
    assert {t.dtype for name, t in load_file(path).items() if ".lora_" in name} == {torch.float16}
    adapter.detach()
    base = output(sd)
    apply_lora(sd, path)
    assert (output(sd) - tuned).norm() < 2e-3 * (tuned - base).norm()


def test_the_file_says_what_it_is_and_where_it_comes_from(sd, tmp_path):
    run = {"method": "adaptive", "reward": "aesthetic", "steps": 20, "config_hash": "ab12"}
    path = attach(sd, rank=4, alpha=2).save(tmp_path / "x.safetensors", metadata=run)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    expected = {f"rlr_{key}": str(value) for key, value in run.items()} | {
        "rlr_base": sd.name, "ss_network_dim": "4", "ss_network_alpha": "2.0",
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion/lora",
    }  # fmt: skip
    assert expected.items() <= metadata.items()
    assert load_lora(path).metadata == metadata


def test_strength_is_not_baked_into_the_file(sd, tmp_path):
    adapter = fill(attach(sd, rank=4))
    tuned = output(sd)
    adapter.strength = 0.3
    path = adapter.save(tmp_path / "x.safetensors")
    adapter.detach()
    assert apply_lora(sd, path, strength=0.3).strength == 0.3
    assert not torch.allclose(output(sd), tuned, atol=1e-4)


# --- writing whole, reading whole ---


def test_a_failed_write_leaves_the_old_file_and_no_litter(sd, tmp_path, monkeypatch):
    adapter = fill(attach(sd, rank=2))
    path = adapter.save(tmp_path / "x.safetensors")
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(UserError, match="The disk is full: .* could not be written"):
                fill(adapter, seed=1).save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(sd, tmp_path, monkeypatch):
    adapter = attach(sd, rank=2)
    path = adapter.save(tmp_path / "x.safetensors")
    before = path.read_bytes()

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fill(adapter).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_saving_makes_the_folder_and_refuses_other_kinds_of_files(sd, tmp_path):
    adapter = attach(sd, rank=2)
    assert adapter.save(tmp_path / "new" / "x.safetensors").is_file()
    with pytest.raises(UserError, match="give .*x.safetensors instead"):
        adapter.save(tmp_path / "x.pt")
    with pytest.raises(UserError, match="Unknown LoRA layout 'comfy'"):
        adapter.save(tmp_path / "x.safetensors", "comfy")


def changed(sd, tmp_path, change, layout="kohya", targets="all"):
    """Path of a file of a filled adapter whose tensors were changed; the model is left without adapter."""
    adapter = fill(attach(sd, rank=4, alpha=10, targets=targets))
    path = adapter.save(tmp_path / "x.safetensors", layout)
    adapter.detach()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)
    return path


def refused(sd, path):
    """The sentence with which the file is refused; the model must be untouched."""

    def modules():
        return [module for network in sd.networks.values() for module in network.children()]

    before = [list(module.modules()) for module in modules()]
    with pytest.raises(UserError) as caught:
        apply_lora(sd, path)
    assert [list(module.modules()) for module in modules()] == before
    return str(caught.value)


def test_a_file_without_alpha_means_scale_one(sd, tmp_path):
    path = changed(sd, tmp_path, lambda state: {k: v for k, v in state.items() if "alpha" not in k})
    assert {module.alpha for module in load_lora(path).modules.values()} == {4.0}


def test_linear_layers_saved_as_1x1_convolutions_are_read(sd, tmp_path):
    def as_convolutions(state):
        return {k: v[..., None, None] if v.ndim == 2 else v for k, v in state.items()}

    state = apply_lora(sd, changed(sd, tmp_path, as_convolutions)).state_dict()
    assert {tensor.ndim for name, tensor in state.items() if "to_q" in name} == {2}


def test_a_lora_of_another_model_is_refused_whole(sd, tmp_path):
    adapter = attach(TinyFlow(), rank=2)
    message = refused(sd, adapter.save(tmp_path / "flow.safetensors"))
    assert "was made for another model" in message and "nothing was applied" in message

    def one_wider(state):
        key = next(k for k in state if "attn2_to_k.lora_down" in k)
        return state | {key: torch.zeros(4, 99)}

    assert "16 inputs and 16 outputs, in the file 99 and 16" in refused(sd, changed(sd, tmp_path, one_wider))

    def one_more(state):
        return state | {"lora_unet_nowhere.lora_down.weight": torch.zeros(4, 8),
                        "lora_unet_nowhere.lora_up.weight": torch.zeros(8, 4)}  # fmt: skip

    message = refused(sd, changed(sd, tmp_path, one_more))
    assert "no place for 'lora_unet_nowhere' (1 of 57 modules)" in message


def test_text_encoder_parts_are_not_dropped_in_silence(sd, tmp_path):
    def with_text(key, width):
        down, up = torch.zeros(4, width), torch.zeros(32, 4)
        return lambda state: state | {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}

    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    narrow = refused(sd, changed(sd, tmp_path, with_text(key, 8)))
    assert "16 inputs and 32 outputs, in the file 8 and 32" in narrow
    seventh = key.replace("layers_0", "layers_7")
    assert f"no place for '{seventh}'" in refused(sd, changed(sd, tmp_path, with_text(seventh, 16)))
    again = with_text("text_encoder.encoder.layers.0.mlp.fc1", 16)
    twice = changed(sd, tmp_path, lambda state: with_text(key, 16)(again(state)))
    assert "changes some modules twice" in refused(sd, twice)
    text = changed(sd, tmp_path, lambda state: with_text(key, 16)({}))
    message = refused(TinyFlow(), text)
    assert "also changes a text encoder (1 modules), which tiny-flow-0 has no place for" in message


def test_files_that_are_no_plain_lora_are_refused(sd, tmp_path):
    def half(state):
        key = next(k for k in state if "lora_up" in k)
        return {k: v for k, v in state.items() if k != key}

    assert "only one of its two matrices" in refused(sd, changed(sd, tmp_path, half))
    dora = changed(sd, tmp_path, lambda s: s | {"lora_unet_x.dora_scale": torch.zeros(1)})
    assert "'lora_unet_x.dora_scale' is not understood" in refused(sd, dora)
    save_file({"lora_unet_x.hada_w1_a": torch.zeros(1)}, tmp_path / "loha.safetensors")
    assert "not a plain LoRA" in refused(sd, tmp_path / "loha.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    assert "is a VAE alone, not a LoRA" in refused(sd, tmp_path / "vae.safetensors")
    assert "There is no LoRA file" in refused(sd, tmp_path / "nothing.safetensors")


def test_diffusers_own_file_of_a_peft_adapter_is_read_at_its_strength(tiny_sd_folder, sd, tmp_path):
    """save_lora_weights with its metadata: alpha comes from there, rank and names from the tensors."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, local_files_only=True)
    settings = {"r": 3, "lora_alpha": 7, "alpha_pattern": {"ff.net.2": 5}, "init_lora_weights": False}
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q", "ff.net.2"], **settings))
    settings = pipeline.unet.peft_config["default"].to_dict()
    raw = get_peft_model_state_dict(pipeline.unet)
    for index, layers in enumerate((raw, convert_state_dict_to_diffusers(raw))):
        name = f"{index}.safetensors"
        StableDiffusionPipeline.save_lora_weights(
            tmp_path, unet_lora_layers=layers, weight_name=name, unet_lora_adapter_metadata=settings
        )
        own, sd.unet = sd.unet, pipeline.unet
        expected = output(sd)
        sd.unet = own
        adapter = apply_lora(sd, tmp_path / name)
        assert torch.equal(output(sd), expected)
        adapter.detach()


def test_the_metadata_of_the_diffusers_layout_is_pefts(sd, tmp_path):
    adapter = attach(sd, rank=4, alpha=10)
    with safe_open(adapter.save(tmp_path / "x.safetensors", "diffusers"), "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"]) == (4, 10)
    assert [f"unet.{path}" for path in settings["unet.target_modules"]] == list(adapter.layers)
    assert not any(key.startswith("text_encoder") for key in settings)


def test_each_network_has_its_own_metadata_in_the_diffusers_layout(sd, tmp_path):
    adapter = attach(sd, rank=4, alpha=10, text_encoder=True)
    with safe_open(adapter.save(tmp_path / "x.safetensors", "diffusers"), "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["text_encoder.r"], settings["text_encoder.lora_alpha"]) == (4, 10)
    text = [f"text_encoder.text_model.{path}" for path in settings["text_encoder.target_modules"]]
    unet = [f"unet.{path}" for path in settings["unet.target_modules"]]
    assert [*unet, *text] == list(adapter.layers)


def test_ranks_in_the_metadata_are_found_with_and_without_the_text_encoders_outermost_level(sd, tmp_path):
    paths = sd.lora_layers("attention", text_encoder=True)
    adapter = attach_to(sd, {path: (3 if path.endswith("1.self_attn.v_proj") else 2, 2.0) for path in paths})
    with safe_open(adapter.save(tmp_path / "x.safetensors", "diffusers"), "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    ((pattern, rank),) = settings["text_encoder.rank_pattern"].items()
    assert rank == 3 and not settings["unet.rank_pattern"]
    path = "encoder.layers.1.self_attn.v_proj"
    assert all(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in (path, f"text_model.{path}"))


# --- files that ask for more than they hold ---


def test_a_small_file_cannot_ask_for_a_large_adapter(sd, tmp_path):
    """A rank of a million in a file of 8 MB would make an adapter of gigabytes."""
    name = sd.lora_key(sd.lora_layers("attention")[0], "kohya")
    rank = 1_000_000
    tensors = {
        f"{name}.lora_down.weight": torch.zeros(rank, 1),
        f"{name}.lora_up.weight": torch.zeros(1, rank),
    }
    save_file(tensors, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match="was made for another model .* in the file 1 and 1"):
        apply_lora(sd, tmp_path / "wide.safetensors")
    tensors = {
        f"{name}.lora_down.weight": torch.zeros(rank, 0),
        f"{name}.lora_up.weight": torch.zeros(0, rank),
    }
    save_file(tensors, tmp_path / "empty.safetensors")
    with pytest.raises(UserError, match="have no product"):
        apply_lora(sd, tmp_path / "empty.safetensors")
    assert not sd.has_adapter()


def test_an_expression_in_a_file_is_not_run(sd, tmp_path):
    """As an expression this one takes longer than anybody waits."""
    adapter = attach(sd)
    adapter.save(tmp_path / "lora.safetensors", layout="diffusers")
    adapter.detach()
    tensors = load_file(tmp_path / "lora.safetensors")
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["lora_adapter_metadata"])
    settings["unet.alpha_pattern"] = {"(.|.)*(.|.)*Z": 3.0}
    metadata["lora_adapter_metadata"] = json.dumps(settings)
    save_file(tensors, tmp_path / "hostile.safetensors", metadata)
    with pytest.raises(UserError, match="has the expression .* not run"):
        apply_lora(sd, tmp_path / "hostile.safetensors")
