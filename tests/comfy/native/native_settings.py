"""Settings of tiny networks of ComfyUI's own classes, as its loader would read them off a file."""

from __future__ import annotations

from typing import Any


def has_class(config: str) -> bool:
    """Whether this version of ComfyUI has a model class."""
    import comfy.supported_models

    return hasattr(comfy.supported_models, config)


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


def sd3_settings(pooled: int = 32, context: int = 24, **changes: Any) -> dict[str, Any]:
    """pooled, context: widths of what it is told."""
    return {
        "in_channels": 16,
        "patch_size": 2,
        "depth": 2,
        "input_size": None,
        "pos_embed_max_size": 24,
        "num_patches": 24 * 24,
        "adm_in_channels": pooled,
        "context_size": context,
        "qk_norm": "rms",
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": context, "out_features": 128},
        },
        "pos_embed_scaling_factor": None,
    } | changes


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


def flux2_settings(**changes: Any) -> dict[str, Any]:
    settings = {
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "vec_in_dim": None,
        "axes_dim": [4, 4, 4, 4],
        "theta": 2000,
        "patch_size": 1,
        "qkv_bias": False,
        "guidance_embed": False,
        "global_modulation": True,
        "mlp_silu_act": True,
        "ops_bias": False,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
        "txt_ids_dims": [3],
    }
    return flux_settings(**settings | changes)


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


def z_image_settings(**changes: Any) -> dict[str, Any]:
    settings = {
        "dim": 256,
        "n_heads": 8,
        "n_kv_heads": 8,
        "axes_dims": [16, 8, 8],
        "multiple_of": 8,
        "rope_theta": 256.0,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 8,
    }
    return lumina_settings(**settings | changes)


def qwen_image_settings(**changes: Any) -> dict[str, Any]:
    return {
        "image_model": "qwen_image",
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 6, 6),
        "patch_size": 2,
    } | changes


def cosmos_settings(**changes: Any) -> dict[str, Any]:
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
