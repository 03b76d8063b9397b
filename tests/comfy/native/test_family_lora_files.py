"""LoRA files of the headless families in stock ComfyUI: every module is patched as much, no key is lost."""

from __future__ import annotations

import pytest
import torch
from adapters import fill
from native_models import flux_settings, has_class, lumina_settings, unet_settings, wan_settings
from native_parts import base_model
from tiny_pipelines import WIDTH, write_pipeline

from rlr_core.diffusion.models.loading import load_model
from rlr_core.lora import attach


def _unet(depths: list[int], middle: int, context: int, linear: bool, adm: int | None = None) -> dict:
    output = [depth for depth in depths for _ in range(2)]
    return unet_settings(context, linear, adm) | {
        "transformer_depth": depths,
        "transformer_depth_output": output,
        "transformer_depth_middle": middle,
    }


def native_twin(family: str):
    """ComfyUI's own network with the same numbers of blocks and the same widths."""
    import comfy.model_base as mb

    if family == "stable-diffusion-xl":
        return base_model("SDXL", _unet([0, 2], 2, 2 * WIDTH, True, 6 * 8 + WIDTH), mb.SDXL)
    if family == "animatediff":
        return base_model("SD15", _unet([1, 0], 1, WIDTH, False), mb.BaseModel)
    if family == "stable-diffusion-3":
        settings = {
            "in_channels": 4,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "pos_embed_max_size": 16,
            "num_patches": 256,
            "adm_in_channels": 2 * WIDTH,
            "context_size": 2 * WIDTH,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 2 * WIDTH, "out_features": 128},
            },
            "pos_embed_scaling_factor": None,
        }
        return base_model("SD3", settings, mb.SD3)
    if family == "flux":
        return base_model("Flux", flux_settings(mlp_ratio=4.0, context_in_dim=WIDTH), mb.Flux)
    if family == "flux2":
        settings = flux_settings(
            image_model="flux2",
            vec_in_dim=None,
            context_in_dim=3 * WIDTH,
            axes_dim=[4, 4, 4, 4],
            patch_size=1,
            mlp_ratio=3.0,
            qkv_bias=False,
            guidance_embed=False,
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
            default_ref_method="index",
            ref_index_scale=10.0,
            txt_ids_dims=[3],
        )
        return base_model("Flux2", settings, mb.Flux2)
    if family == "qwen-image":
        settings = {
            "image_model": "qwen_image",
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 6, 6),
            "patch_size": 2,
        }
        return base_model("QwenImage", settings, mb.QwenImage)
    if family == "z-image":
        settings = lumina_settings(
            in_channels=4,
            dim=32,
            cap_feat_dim=WIDTH,
            n_heads=2,
            n_kv_heads=2,
            axes_dims=[4, 6, 6],
            multiple_of=1,
            ffn_dim_multiplier=8 / 3,
            z_image_modulation=True,
            time_scale=1000.0,
            pad_tokens_multiple=32,
        )
        return base_model("ZImage", settings, mb.Lumina2)
    settings = wan_settings(dim=32, ffn_dim=32, freq_dim=16, text_dim=WIDTH, num_heads=2, in_dim=4, out_dim=4)
    return base_model("WAN21_T2V", settings, mb.WAN21)


NEEDED = {"flux2": "Flux2", "z-image": "ZImage"}
CHANGES = {
    "stable-diffusion-xl": {"block_out_channels": (32, 64), "norm_num_groups": 32},
    "animatediff": {"block_out_channels": (32, 64), "norm_num_groups": 32},
}
FAMILIES = ("stable-diffusion-xl", "stable-diffusion-3", "flux", "qwen-image", "z-image", "flux2", "wan")


@pytest.mark.parametrize(
    "family, targets",
    [(family, targets) for family in FAMILIES for targets in ("attention", "all")]
    + [("animatediff", "attention+ff")],
)
def test_stock_comfyui_patches_every_module_by_as_much_and_loses_no_key(
    pack, family, targets, tmp_path, caplog
):
    import comfy.lora
    import comfy.sd
    import comfy.utils

    if family in NEEDED and not has_class(NEEDED[family]):
        pytest.skip(f"this ComfyUI has no {family}")
    with torch.inference_mode(False):
        folder = write_pipeline(family, tmp_path / "model", **CHANGES.get(family, {}))
        adapter = fill(attach(load_model(folder, device="cpu"), rank=4, alpha=10, targets=targets))
        path = adapter.save(tmp_path / "lora.safetensors")
        modules = adapter.modules().values()
        expected = sum(float((m.alpha / m.rank * m.up.flatten(1) @ m.down.flatten(1)).square().sum())
                       for m in modules)  # fmt: skip
    caplog.clear()
    with torch.inference_mode():
        twin = native_twin(family)
        file = comfy.utils.load_torch_file(str(path), safe_load=True)
        patched, _ = comfy.sd.load_lora_for_models(twin, None, file, 1.0, 0.0)
        weights = dict(patched.model.named_parameters())
        found = 0.0
        for key, patches in patched.patches.items():
            before = weights[key].detach().float()
            after = comfy.lora.calculate_weight(patches, before.clone(), key)
            found += float((after - before).square().sum())
    assert not [record for record in caplog.records if "not loaded" in record.message.lower()]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert sum(map(len, patched.patches.values())) == len(modules)
    assert found == pytest.approx(expected, rel=1e-3)
