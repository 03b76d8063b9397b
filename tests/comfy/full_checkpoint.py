"""Checkpoint files of the real sizes with random weights: Stable Diffusion 1.5, and 2.x v-prediction."""

from __future__ import annotations

from pathlib import Path

import torch
from thin_sd15 import FULL_UNET, VAE, write_checkpoint
from torch import nn

FULL_UNET_2 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def write_full_checkpoint(path: Path, version: str) -> int:
    """Write the file in fp16 and return its size in bytes. version: 'sd1', or 'sd2 v-prediction'."""
    if version == "sd1":
        write_checkpoint(path, FULL_UNET)
    else:
        _write_sd2(path)
    return path.stat().st_size


def _write_sd2(path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from tiny_checkpoint import ldm_unet, ldm_vae

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet, vae = UNet2DConditionModel(**FULL_UNET_2), AutoencoderKL(**VAE)
    state = {f"model.diffusion_model.{name}": value.half() for name, value in ldm_unet(unet).items()}
    state |= {f"first_stage_model.{name}": value.half() for name, value in ldm_vae(vae).items()}
    state |= {f"cond_stage_model.model.{name}": value.half() for name, value in _open_clip_text().items()}
    state["v_pred"] = torch.zeros(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def _open_clip_text(width: int = 1024, layers: int = 24) -> dict[str, torch.Tensor]:
    """The text tower of OpenCLIP's ViT-H/14, by the names in the file."""
    tower = nn.TransformerEncoderLayer(width, 16, 4 * width)
    tensors = {
        "token_embedding.weight": torch.randn(49408, width) * 0.02,
        "positional_embedding": torch.randn(77, width) * 0.01,
        "ln_final.weight": torch.ones(width),
        "ln_final.bias": torch.zeros(width),
        "text_projection": torch.randn(width, width) * 0.02,
    }
    for layer in range(layers):
        at = f"transformer.resblocks.{layer}."
        tensors |= {
            at + "attn.in_proj_weight": tower.self_attn.in_proj_weight.detach().clone(),
            at + "attn.in_proj_bias": torch.zeros(3 * width),
            at + "attn.out_proj.weight": tower.self_attn.out_proj.weight.detach().clone(),
            at + "attn.out_proj.bias": torch.zeros(width),
            at + "mlp.c_fc.weight": torch.randn(4 * width, width) * 0.02,
            at + "mlp.c_fc.bias": torch.zeros(4 * width),
            at + "mlp.c_proj.weight": torch.randn(width, 4 * width) * 0.01,
            at + "mlp.c_proj.bias": torch.zeros(width),
        }
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"{at}{norm}.weight": torch.ones(width), f"{at}{norm}.bias": torch.zeros(width)}
    return tensors
