"""Tiny random models of ComfyUI's own classes, built in inference mode as ComfyUI builds them.

Each is what sockets would bring: a MODEL, a CLIP, a VAE and a LATENT. Texts are encoded at random by their
letters, at lengths of their own where the architecture's text encoder does so.
"""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import torch
from native_parts import Clip, Sockets, base_model, latent, picture_vae, video_vae


def unet_settings(context: int, linear: bool, adm: int | None = None) -> dict[str, Any]:
    settings = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": context,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": linear,
        "legacy": False,
        "adm_in_channels": adm,
        "use_checkpoint": False,
        "num_heads": 2,
        "num_head_channels": -1,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }
    if adm is not None:
        settings["num_classes"] = "sequential"
    return settings


def _model_base() -> Any:
    import comfy.model_base

    return comfy.model_base


def sd15(**dtypes: Any) -> Sockets:
    mb = _model_base()
    make = functools.partial(mb.BaseModel, model_type=mb.ModelType.EPS)
    model = base_model("SD15", unet_settings(16, linear=False), make, **dtypes)
    return Sockets(model, Clip(16, same_length=True), picture_vae(4), latent(4, 8, 8))


def sd2_v(**dtypes: Any) -> Sockets:
    mb = _model_base()
    make = functools.partial(mb.BaseModel, model_type=mb.ModelType.V_PREDICTION)
    model = base_model("SD20", unet_settings(16, linear=True), make, **dtypes)
    return Sockets(model, Clip(16, same_length=True), picture_vae(4), latent(4, 8, 8))


def sdxl(kind: str = "EPS", **dtypes: Any) -> Sockets:
    mb = _model_base()
    make = functools.partial(mb.SDXL, model_type=mb.ModelType[kind])
    model = base_model("SDXL", unet_settings(16, linear=True, adm=1280 + 6 * 256), make, **dtypes)
    return Sockets(model, Clip(16, pooled=1280, same_length=True), picture_vae(4), latent(4, 8, 8))


def sdxl_edm(**dtypes: Any) -> Sockets:
    return sdxl("EDM", **dtypes)


def sd3(**dtypes: Any) -> Sockets:
    settings = {
        "in_channels": 16,
        "patch_size": 2,
        "depth": 2,
        "input_size": None,
        "pos_embed_max_size": 24,
        "num_patches": 24 * 24,
        "adm_in_channels": 32,
        "context_size": 24,
        "qk_norm": "rms",
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 24, "out_features": 128},
        },
        "pos_embed_scaling_factor": None,
    }
    model = base_model("SD3", settings, _model_base().SD3, **dtypes)
    return Sockets(model, Clip(24, pooled=32), picture_vae(16), latent(16, 8, 8))


def flux_settings(**changes: Any) -> dict[str, Any]:
    settings = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 12,
        "context_in_dim": 24,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    }
    if has_class("ZImage"):  # newer versions ask for it
        settings["txt_ids_dims"] = []
    return settings | changes


def flux(**dtypes: Any) -> Sockets:
    model = base_model("Flux", flux_settings(), _model_base().Flux, **dtypes)
    return Sockets(model, Clip(24, pooled=12), picture_vae(16), latent(16, 8, 8))


def flux2(**dtypes: Any) -> Sockets:
    settings = flux_settings(
        image_model="flux2",
        in_channels=128,
        out_channels=128,
        vec_in_dim=None,
        axes_dim=[4, 4, 4, 4],
        theta=2000,
        patch_size=1,
        qkv_bias=False,
        guidance_embed=False,
        global_modulation=True,
        mlp_silu_act=True,
        ops_bias=False,
        default_ref_method="index",
        ref_index_scale=10.0,
        txt_ids_dims=[3],
    )
    model = base_model("Flux2", settings, _model_base().Flux2, **dtypes)
    return Sockets(model, Clip(24), picture_vae(128), latent(128, 4, 4))


def chroma(**dtypes: Any) -> Sockets:
    settings = flux_settings(
        image_model="chroma",
        in_channels=64,
        out_channels=64,
        in_dim=64,
        out_dim=32,
        hidden_dim=48,
        n_layers=2,
        vec_in_dim=None,
    )
    del settings["guidance_embed"]
    if not has_class("ZImage"):
        del settings["vec_in_dim"]
    model = base_model("Chroma", settings, _model_base().Chroma, **dtypes)
    return Sockets(model, Clip(24), picture_vae(16), latent(16, 8, 8))


def wan_settings(**changes: Any) -> dict[str, Any]:
    return {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "dim": 48,
        "ffn_dim": 64,
        "freq_dim": 32,
        "text_dim": 24,
        "num_heads": 4,
        "num_layers": 2,
        "in_dim": 16,
        "out_dim": 16,
        "patch_size": (1, 2, 2),
        "text_len": 16,
        "cross_attn_norm": True,
        "qk_norm": True,
        "eps": 1e-6,
    } | changes


def wan21(**dtypes: Any) -> Sockets:
    model = base_model("WAN21_T2V", wan_settings(), _model_base().WAN21, **dtypes)
    return Sockets(model, Clip(24, same_length=True), video_vae(), latent(16, 2, 4, 4))


def lumina_settings(**changes: Any) -> dict[str, Any]:
    settings = {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "dim": 48,
        "cap_feat_dim": 24,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "qk_norm": True,
        "n_heads": 2,
        "n_kv_heads": 1,
        "axes_dims": [8, 8, 8],
        "axes_lens": [64, 64, 64],
        "ffn_dim_multiplier": 1.0,
        "multiple_of": 16,
    }
    if has_class("ZImage"):
        settings["rope_theta"] = 10000.0
    return settings | changes


def _no_pads(length: int) -> dict[str, Any]:
    return {"attention_mask": torch.ones(1, length, dtype=torch.long)}


def lumina2(**dtypes: Any) -> Sockets:
    model = base_model("Lumina2", lumina_settings(), _model_base().Lumina2, **dtypes)
    return Sockets(model, Clip(24, extras=_no_pads), picture_vae(16), latent(16, 8, 8))


def z_image(**dtypes: Any) -> Sockets:
    settings = lumina_settings(
        dim=256,
        n_heads=8,
        n_kv_heads=8,
        axes_dims=[16, 8, 8],
        multiple_of=8,
        rope_theta=256.0,
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=8,
    )
    model = base_model("ZImage", settings, _model_base().Lumina2, **dtypes)
    return Sockets(model, Clip(24), picture_vae(16), latent(16, 8, 8))


def qwen_image(**dtypes: Any) -> Sockets:
    settings = {
        "image_model": "qwen_image",
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 6, 6),
        "patch_size": 2,
    }
    model = base_model("QwenImage", settings, _model_base().QwenImage, **dtypes)
    return Sockets(model, Clip(24), video_vae(), latent(16, 1, 4, 4))


def _cosmos_settings(**changes: Any) -> dict[str, Any]:
    return {
        "image_model": "cosmos_predict2",
        "max_img_h": 24,
        "max_img_w": 24,
        "max_frames": 8,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 48,
        "num_blocks": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "crossattn_emb_channels": 16,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop",
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
        "extra_per_block_abs_pos_emb": False,
        "rope_enable_fps_modulation": False,
    } | changes


def cosmos(**dtypes: Any) -> Sockets:
    model = base_model("CosmosT2IPredict2", _cosmos_settings(), _model_base().CosmosPredict2, **dtypes)
    return Sockets(model, Clip(16, same_length=True), video_vae(), latent(16, 1, 4, 4))


def anima(**dtypes: Any) -> Sockets:
    import comfy.ldm.anima.model as anima_model

    small = functools.partial(
        anima_model.LLMAdapter, source_dim=24, target_dim=16, model_dim=16, num_layers=1, num_heads=2
    )
    with mock.patch.object(anima_model, "LLMAdapter", small):
        model = base_model("Anima", _cosmos_settings(image_model="anima"), _model_base().Anima, **dtypes)

    def ids(length: int) -> dict[str, Any]:
        return {"t5xxl_ids": torch.arange(length), "t5xxl_weights": torch.ones(length)}

    return Sockets(model, Clip(24, extras=ids), video_vae(), latent(16, 1, 4, 4))


def ltxv(**dtypes: Any) -> Sockets:
    settings = {
        "image_model": "ltxv",
        "in_channels": 128,
        "cross_attention_dim": 32,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_channels": 24,
        "num_layers": 2,
    }
    model = base_model("LTXV", settings, _model_base().LTXV, **dtypes)
    extras = _no_pads
    return Sockets(model, Clip(24, same_length=True, extras=extras), video_vae(128), latent(128, 2, 4, 4))


def hunyuan_video(**dtypes: Any) -> Sockets:
    settings = {
        "image_model": "hunyuan_video",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 12,
        "context_in_dim": 24,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 256,
        "patch_size": [1, 2, 2],
        "qkv_bias": True,
        "guidance_embed": True,
        "byt5": False,
        "meanflow": False,
    }
    if has_class("ZImage"):
        settings |= {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
    model = base_model("HunyuanVideo", settings, _model_base().HunyuanVideo, **dtypes)
    return Sockets(model, Clip(24, pooled=12), video_vae(), latent(16, 2, 4, 4))


def hidream(**dtypes: Any) -> Sockets:
    settings = {
        "image_model": "hidream",
        "attention_head_dim": 16,
        "axes_dims_rope": [8, 4, 4],
        "caption_channels": [24, 20],
        "max_resolution": [16, 16],
        "in_channels": 16,
        "out_channels": 16,
        "llama_layers": [0, 1, 1, 1],
        "num_attention_heads": 2,
        "num_routed_experts": 2,
        "num_activated_experts": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "patch_size": 2,
        "text_emb_dim": 20,
    }

    def llama(length: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(length)
        return {"conditioning_llama3": torch.randn(1, 2, length, 20, generator=generator)}

    model = base_model("HiDream", settings, _model_base().HiDream, **dtypes)
    return Sockets(model, Clip(24, pooled=20, extras=llama), picture_vae(16), latent(16, 8, 8))


def has_class(config: str) -> bool:
    """Whether this version of ComfyUI has a model class."""
    import comfy.supported_models

    return hasattr(comfy.supported_models, config)


EVERYWHERE = {
    "sd15": sd15,
    "sd2-v": sd2_v,
    "sdxl": sdxl,
    "sdxl-edm": sdxl_edm,
    "sd3": sd3,
    "flux": flux,
    "wan21": wan21,
    "lumina2": lumina2,
    "qwen-image": qwen_image,
    "cosmos": cosmos,
    "chroma": chroma,
    "ltxv": ltxv,
    "hunyuan-video": hunyuan_video,
    "hidream": hidream,
}
NEWER = {"z-image": ("ZImage", z_image), "flux2": ("Flux2", flux2), "anima": ("Anima", anima)}
NAMES = [*EVERYWHERE, *NEWER]


def available(name: str) -> bool:
    """Whether this version of ComfyUI has the architecture."""
    return name in EVERYWHERE or has_class(NEWER[name][0])


def build(name: str, **dtypes: Any) -> Sockets:
    """The tiny model of a name in NAMES. dtypes: of `base_model`."""
    make = EVERYWHERE[name] if name in EVERYWHERE else NEWER[name][1]
    with torch.inference_mode():
        return make(**dtypes)
