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
from native_settings import (
    cosmos_settings,
    flux2_settings,
    flux_settings,
    has_class,
    lumina_settings,
    qwen_image_settings,
    sd3_settings,
    unet_settings,
    wan_settings,
    z_image_settings,
)


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
    model = base_model("SD3", sd3_settings(), _model_base().SD3, **dtypes)
    return Sockets(model, Clip(24, pooled=32), picture_vae(16), latent(16, 8, 8))


def flux(**dtypes: Any) -> Sockets:
    model = base_model("Flux", flux_settings(), _model_base().Flux, **dtypes)
    return Sockets(model, Clip(24, pooled=12), picture_vae(16), latent(16, 8, 8))


def flux2(**dtypes: Any) -> Sockets:
    model = base_model("Flux2", flux2_settings(), _model_base().Flux2, **dtypes)
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


def wan21(**dtypes: Any) -> Sockets:
    model = base_model("WAN21_T2V", wan_settings(), _model_base().WAN21, **dtypes)
    return Sockets(model, Clip(24, same_length=True), video_vae(), latent(16, 2, 4, 4))


def _no_pads(length: int) -> dict[str, Any]:
    return {"attention_mask": torch.ones(1, length, dtype=torch.long)}


def lumina2(**dtypes: Any) -> Sockets:
    model = base_model("Lumina2", lumina_settings(), _model_base().Lumina2, **dtypes)
    return Sockets(model, Clip(24, extras=_no_pads), picture_vae(16), latent(16, 8, 8))


def z_image(**dtypes: Any) -> Sockets:
    model = base_model("ZImage", z_image_settings(), _model_base().Lumina2, **dtypes)
    return Sockets(model, Clip(24), picture_vae(16), latent(16, 8, 8))


def qwen_image(**dtypes: Any) -> Sockets:
    model = base_model("QwenImage", qwen_image_settings(), _model_base().QwenImage, **dtypes)
    return Sockets(model, Clip(24), video_vae(), latent(16, 1, 4, 4))


def cosmos(**dtypes: Any) -> Sockets:
    model = base_model("CosmosT2IPredict2", cosmos_settings(), _model_base().CosmosPredict2, **dtypes)
    return Sockets(model, Clip(16, same_length=True), video_vae(), latent(16, 1, 4, 4))


def anima(**dtypes: Any) -> Sockets:
    import comfy.ldm.anima.model as anima_model

    small = functools.partial(
        anima_model.LLMAdapter, source_dim=24, target_dim=16, model_dim=16, num_layers=1, num_heads=2
    )
    with mock.patch.object(anima_model, "LLMAdapter", small):
        model = base_model("Anima", cosmos_settings(image_model="anima"), _model_base().Anima, **dtypes)

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
    settings = flux_settings(
        image_model="hunyuan_video", theta=256, patch_size=[1, 2, 2], byt5=False, meanflow=False
    )
    settings.pop("txt_ids_dims", None)  # Flux alone has them
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
