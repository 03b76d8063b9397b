"""A checkpoint that stock ComfyUI takes for Stable Diffusion 1.5: 320 channels, two levels, random weights.

Its UNet is thin (37 million parameters); its VAE and CLIP ViT-L are of the real sizes, which ComfyUI does not
read from the file. About 460 MB in fp16, made in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 320),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
FULL_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def write_checkpoint(path: Path, unet: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Write the file; returns the UNet and text encoder that it was made of, its values in float32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from tiny_checkpoint import ldm_unet, ldm_vae
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DConditionModel(**(UNET if unet is None else unet)).eval().half().float()
        vae = AutoencoderKL(**VAE)
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                           num_attention_heads=12, hidden_act="quick_gelu")
        ).eval().half().float()  # fmt: skip
    state = {f"model.diffusion_model.{name}": value for name, value in ldm_unet(network).items()}
    state |= {f"first_stage_model.{name}": value for name, value in ldm_vae(vae).items()}
    prefix = "cond_stage_model.transformer.text_model."
    for name, value in text.state_dict().items():
        state[prefix + name.removeprefix("text_model.")] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, path)
    return network, text
