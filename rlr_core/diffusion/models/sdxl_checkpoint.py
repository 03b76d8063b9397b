"""Stable Diffusion XL from one .safetensors file in the layout of the original code, fully offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlr_core.common.weights import Shapes, read_header
from rlr_core.diffusion.models import ldm_checkpoint as ldm
from rlr_core.diffusion.models.clip_tokenizer import clip_tokenizer
from rlr_core.errors import UserError

FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def load_parts(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a Stable Diffusion XL checkpoint, as keywords of `StableDiffusionXL`.

    Raises UserError if weights are missing or it is the refiner.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    shapes, metadata, _ = read_header(path)
    if not any(name.startswith(FIRST) for name in shapes):
        raise UserError(f"{path} is the refiner of Stable Diffusion XL; use the base model.")
    prediction = ldm.prediction_type(path, "sdxl", shapes, metadata)
    try:
        return {
            "unet": ldm.network(UNet2DConditionModel, path, unet_config(shapes, prediction), dtype),
            "vae": ldm.network(AutoencoderKL, path, vae_config(shapes), dtype),
            "text_encoder": ldm.text_encoder(
                path, ldm.tensors_under(path, FIRST), ldm.clip_config(shapes, FIRST), dtype
            ),
            "text_encoder_2": _second_encoder(path, shapes, dtype),
            "tokenizers": [clip_tokenizer(), clip_tokenizer("!")],
            "scheduler_config": ldm.scheduler_config(prediction, zero_snr="ztsnr" in shapes),
            "zero_empty_prompt": True,
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} is incomplete: {error} is missing; download it again.") from error


def unet_config(shapes: Shapes, prediction: str) -> dict[str, Any]:
    """Configuration of UNet2DConditionModel for SDXL's UNet in the original layout."""
    config = ldm.unet_config(shapes, "sdxl", prediction)
    per_level = config["layers_per_block"] + 1
    first_of_levels = [1 + level * per_level for level in range(len(config["block_out_channels"]))]
    blocks = [
        ldm.count(shapes, rf"{ldm.UNET}input_blocks\.{number}\.1\.transformer_blocks\.(\d+)\.") or 1
        for number in first_of_levels
    ]
    return config | {
        "sample_size": 128,
        "transformer_layers_per_block": blocks,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": shapes[f"{ldm.UNET}label_emb.0.0.weight"][1],
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of AutoencoderKL for SDXL's autoencoder, which overflows in float16."""
    return ldm.vae_config(shapes) | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}


def _second_encoder(path: Path, shapes: Shapes, dtype: torch.dtype) -> nn.Module:
    """The OpenCLIP text tower, with the projection of its pooled output."""
    state = ldm.tensors_under(path, SECOND)
    config = ldm.open_clip_config(shapes, SECOND)
    renamed: dict[str, Tensor] = ldm.from_open_clip(state, config["num_hidden_layers"])
    projection = state["text_projection"]  # [width, projected], applied from the right
    renamed["text_projection.weight"] = projection.T.contiguous()
    config["projection_dim"] = projection.shape[1]
    return ldm.text_encoder(path, renamed, config, dtype, projection=True)
