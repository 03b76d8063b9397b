"""Tiny random pipelines of diffusers' own classes, one for each family, written as diffusers writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sd import write_tiny_sd
from tiny_text_parts import (
    WIDTH,
    clip_text_encoder,
    clip_tokenizer,
    letter_tokenizer,
    qwen3,
    qwen25_vl,
    t5_encoder,
)

from rlr_core.diffusion.models.flow_transformer import OLDEST_TORCH

UNETS = ("stable-diffusion-xl", "animatediff")


def write_pipeline(family: str, folder: Path, **changes: Any) -> Path:
    """Write the tiny pipeline of a family, or skip where these libraries are too old to have it.

    changes: to the settings of its denoiser.
    """
    if family == "stable-diffusion":
        return write_tiny_sd(folder, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family not in UNETS and tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
            pytest.skip(f"torch {torch.__version__} is too old for {family}")
        try:
            pipeline = BUILDERS[family](**changes)
        except ImportError as error:
            pytest.skip(f"too old for {family}: {error}")
    pipeline.save_pretrained(folder)
    return folder


# --- pictures ---


def kl_autoencoder(channels: int = 4, **settings: Any) -> Any:
    """Twice the latent's size."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    ).eval()


def flow_scheduler(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


# --- pipelines ---


def sdxl(**changes: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        "norm_num_groups": 8,
    }
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**settings | changes),
        vae=kl_autoencoder(scaling_factor=0.13),
        text_encoder=clip_text_encoder(),
        text_encoder_2=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        add_watermarker=False,
    )


def sd3(**changes: Any) -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    settings = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 64,
        "num_attention_heads": 2,
        "joint_attention_dim": 2 * WIDTH,
        "caption_projection_dim": 128,
        "pooled_projection_dim": 2 * WIDTH,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    encoder = t5_encoder()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**settings | changes),
        vae=kl_autoencoder(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip_text_encoder(projection=True),
        text_encoder_2=clip_text_encoder(projection=True),
        text_encoder_3=_wider(encoder),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=letter_tokenizer(),
        scheduler=flow_scheduler(shift=3.0),
    )


def _wider(encoder: Any) -> Any:
    """A T5 encoder as wide as both CLIPs side by side."""
    from transformers import T5EncoderModel

    config = encoder.config
    config.d_model = 2 * WIDTH
    return T5EncoderModel(config).eval()


def flux(**changes: Any) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    settings = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
    }
    return FluxPipeline(
        transformer=FluxTransformer2DModel(**settings | changes),
        vae=kl_autoencoder(scaling_factor=0.36, shift_factor=0.12),
        text_encoder=clip_text_encoder(),
        text_encoder_2=t5_encoder(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=letter_tokenizer(),
        scheduler=flow_scheduler(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15),
    )


def qwen_image(**changes: Any) -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    settings = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (4, 6, 6),
    }
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 1.0, 0.8],
    ).eval()
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(**settings | changes),
        vae=vae,
        text_encoder=qwen25_vl(),
        tokenizer=letter_tokenizer(),
        scheduler=flow_scheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            time_shift_type="exponential",
        ),
    )


def z_image(**changes: Any) -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    settings = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": WIDTH,
        "axes_dims": [4, 6, 6],
        "axes_lens": [600, 64, 64],
    }
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(**settings | changes),
        vae=kl_autoencoder(scaling_factor=0.36, shift_factor=0.12),
        text_encoder=qwen3(),
        tokenizer=letter_tokenizer(),
        scheduler=flow_scheduler(shift=3.0),
    )


def flux2(distilled: bool = False, **changes: Any) -> Any:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    settings = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * WIDTH,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).eval()
    vae.bn.running_mean.normal_(std=0.2)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(**settings | changes),
        vae=vae,
        text_encoder=qwen3(layers=28),
        tokenizer=letter_tokenizer(),
        scheduler=flow_scheduler(use_dynamic_shifting=True, shift=3.0),
        is_distilled=distilled,
    )


def wan(
    vae: dict[str, Any] | None = None,
    expand_timesteps: bool = False,
    boundary: float | None = None,
    **changes: Any,
) -> Any:
    """boundary: share of the training's timesteps below which there is a second transformer."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    autoencoder = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.5, 2.0, 1.0, 0.8],
        "scale_factor_spatial": 4,
    }
    return WanPipeline(
        transformer=WanTransformer3DModel(**settings | changes),
        vae=AutoencoderKLWan(**autoencoder | (vae or {})).eval(),
        text_encoder=t5_encoder(universal=True),
        tokenizer=letter_tokenizer(),
        scheduler=flow_scheduler(shift=3.0),
        expand_timesteps=expand_timesteps,
        transformer_2=None if boundary is None else WanTransformer3DModel(**settings | changes),
        boundary_ratio=boundary,
    )


def wan_two_denoisers(**changes: Any) -> Any:
    return wan(boundary=0.8, **changes)


def animatediff(**changes: Any) -> Any:
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNet2DConditionModel

    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    settings |= changes
    motion = MotionAdapter(
        block_out_channels=settings["block_out_channels"],
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=2,
    )
    with torch.no_grad():  # its last layers begin at zero
        for name, parameter in motion.named_parameters():
            if name.endswith("proj_out.weight"):
                parameter.normal_(std=0.2)
    return AnimateDiffPipeline(
        unet=UNet2DConditionModel(**settings),
        motion_adapter=motion,
        vae=kl_autoencoder(),
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, steps_offset=1
        ),
    )


BUILDERS: dict[str, Callable[..., Any]] = {
    "stable-diffusion-xl": sdxl,
    "stable-diffusion-3": sd3,
    "flux": flux,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "flux2": flux2,
    "wan": wan,
    "wan-2.2-a14b": wan_two_denoisers,
    "animatediff": animatediff,
}
