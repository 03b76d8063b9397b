"""LoRA files of native models: stock ComfyUI patches every module, and they can be started from."""

from __future__ import annotations

import pytest
import torch
from native_models import NAMES
from native_runs import chain_of, family, ksampler, noise_of, norm, random_adapter, relative


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_the_stock_loader_patches_every_module_and_loses_no_key(
    native, build, name, targets, tmp_path, caplog
):
    import comfy.sd
    import comfy.utils

    from rlr_core.diffusion.rollout import rollout

    sockets = build(name)
    model = family(native, sockets)
    noise = noise_of(model)
    with native.running(model):
        chain, conditioning = chain_of(model, steps=3, guidance=1.0)
        base = rollout(chain, noise, conditioning).final
        adapter = random_adapter(model, rank=4, targets=targets)
        live = rollout(chain, noise, conditioning).final
        base, live = (model.base.process_latent_out(x) for x in (base, live))
        path = adapter.save(tmp_path / "lora.safetensors")
        modules = len(adapter.layers)
    assert relative(live, base) > 1e-3
    caplog.clear()
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(path), safe_load=True)
        patched, _ = comfy.sd.load_lora_for_models(sockets.model, None, file, 1.0, 0.0)
    assert not [record for record in caplog.records if "not loaded" in record.message.lower()]
    assert len(patched.patches) == modules
    stock = ksampler(sockets, noise.initial(), "simple", 3, 1.0, model=patched)
    assert norm([stock - live]) < 1e-3 * norm([live - base])


def test_layouts_are_those_that_other_programs_read(native, build):
    """UNets and Flux in kohya's names with alpha, the others under diffusion_model. without."""
    layouts = {
        "sd15": "kohya",
        "sdxl": "kohya",
        "flux": "kohya",
        "sd3": "comfy",
        "wan21": "comfy",
        "chroma": "comfy",
    }
    for name, layout in layouts.items():
        model = family(native, build(name))
        assert model.lora_layouts == (layout,)
    sd15 = family(native, build("sd15"))
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in [
        sd15.lora_key(layer, "kohya") for layer in sd15.lora_layers("attention")
    ]
    sdxl = family(native, build("sdxl"))
    assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q" in [
        sdxl.lora_key(layer, "kohya") for layer in sdxl.lora_layers("attention")
    ]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "wan21", "flux"])
def test_a_saved_lora_comes_back_as_it_was(native, build, name, tmp_path):
    from rlr_core.lora import apply_lora

    with native.running(family(native, build(name))) as model:
        adapter = random_adapter(model)
        path = adapter.save(tmp_path / "lora.safetensors")
        changes = {layer: m.alpha / m.rank * m.up @ m.down for layer, m in adapter.modules().items()}
        adapter.detach()
        again = apply_lora(model, path)
        found = {layer: m.alpha / m.rank * m.up @ m.down for layer, m in again.modules().items()}
    assert found.keys() == changes.keys()
    for layer, change in changes.items():
        torch.testing.assert_close(found[layer], change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "targets", "kinds"),
    [
        ("sd15", "attention", {"to_q", "to_k", "to_v", "to_out.0"}),
        ("sdxl", "attention+ff", {"to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"}),
        ("flux", "attention", {"attn.qkv", "attn.proj", "linear1", "linear2"}),
        ("wan21", "attention", {"attn.q", "attn.k", "attn.v", "attn.o"}),
        ("wan21", "attention+ff", {"attn.q", "attn.k", "attn.v", "attn.o", "ffn.0", "ffn.2"}),
        ("sd3", "attention", {"attn.qkv", "attn.proj"}),
        (
            "qwen-image",
            "attention+ff",
            {"to_q", "to_k", "to_v", "to_out.0", "to_add_out", "_proj", "net.2", "net.0.proj"},
        ),
    ],
)
def test_targets_mean_what_they_say(native, build, name, targets, kinds):
    layers = family(native, build(name)).lora_layers(targets)
    assert layers == sorted(layers)
    for kind in kinds:
        assert any(layer.endswith(kind) for layer in layers), kind
    for layer in layers:
        assert any(layer.endswith(kind) for kind in kinds), layer
        assert "norm" not in layer and "mod" not in layer.removeprefix("diffusion_model.")
