"""What tiny random models are made of: sockets, text encoders by letters, networks filled at random, VAEs."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn


@dataclass
class Sockets:
    """What a graph would hand to the node."""

    model: Any
    clip: Any
    vae: Any
    latent: dict[str, Any]


class Clip:
    """What the family uses of ComfyUI's CLIP: prompts in, one conditioning out."""

    def __init__(
        self, width: int, pooled: int | None = None, same_length: bool = False, extras: Callable | None = None
    ):
        """width: of a token; pooled: of the pooled output; extras: called with the tokens' number."""
        import comfy.model_patcher

        self.width, self.pooled, self.same_length, self.extras = (
            width,
            pooled,
            same_length,
            extras or (lambda length: {}),
        )
        cpu = torch.device("cpu")
        self.patcher = comfy.model_patcher.ModelPatcher(
            fill(nn.Linear(2, 2)), load_device=cpu, offload_device=cpu
        )
        self.layer_idx = None

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[list[Any]]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        generator = torch.Generator().manual_seed(seed)
        length = 8 if self.same_length else 5 + len(text) % 4
        cross = torch.randn(1, length, self.width, generator=generator)
        pooled = None if self.pooled is None else torch.randn(1, self.pooled, generator=generator)
        return [[cross, {"pooled_output": pooled, **self.extras(length)}]]


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a sensible size: ComfyUI's layers begin with none."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        parameter.requires_grad_(False)
        draw = _draw(parameter.shape, generator)
        if parameter.ndim >= 2:
            draw /= math.sqrt(parameter[0].numel())
        elif name.endswith(("weight", "scale", "gamma")):
            draw = 1 + 0.1 * draw
        else:
            draw *= 0.1
        parameter.copy_(draw)
    for name, buffer in module.named_buffers():
        if name == "pos_embed":  # comes from the file, as a weight does
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return module


def _draw(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers; of big weights the same few million again and again, which is quicker."""
    numbers = min(shape.numel(), MOST_DRAWN)
    draw = torch.randn(numbers, generator=generator)
    return draw.repeat(-(-shape.numel() // numbers))[: shape.numel()].reshape(shape)


MOST_DRAWN = 2**22
DEVICES = [torch.device("cpu"), torch.device("cpu")]
"""Where models run, and where they lie."""


def _patcher(model: nn.Module) -> Any:
    import comfy.model_patcher

    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(model, load_device=DEVICES[0], offload_device=DEVICES[1])


def base_model(
    config: str,
    settings: dict[str, Any],
    kind: Callable,
    dtype: Any = torch.float32,
    manual_cast: Any = None,
    operations: Any = None,
) -> Any:
    """A MODEL: ComfyUI's model class for a config of `comfy.supported_models`, with random weights."""
    import comfy.supported_models

    description = getattr(comfy.supported_models, config)(settings)
    description.unet_config.update(settings)
    description.set_inference_dtype(dtype, manual_cast)
    description.custom_operations = operations
    model = kind(description)
    fill(model.diffusion_model)
    return _patcher(model)


def _vae(
    first_stage: nn.Module, latent_dim: int, ratio: Any, channels: int, dtype: torch.dtype = torch.float32
) -> Any:
    import comfy.sd

    shell = {"embed_dim": 4, "ddconfig": _ddconfig(4)}
    with mock.patch.object(logging, "warning"):  # it names every weight that it was not given
        vae = comfy.sd.VAE(sd={}, config={"params": shell}, dtype=dtype)
    vae.first_stage_model = fill(first_stage.eval().to(dtype), seed=1)
    vae.patcher = _patcher(vae.first_stage_model)
    vae.latent_dim, vae.upscale_ratio, vae.latent_channels = latent_dim, ratio, channels
    return vae


def _ddconfig(channels: int) -> dict[str, Any]:
    return {
        "double_z": True,
        "z_channels": channels,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def picture_vae(channels: int, real: bool = False) -> Any:
    """A VAE that makes pictures, twice the latent's size; real: of the size of those in use, in bf16."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    if real:
        settings = _ddconfig(channels) | {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
        network = AutoencoderKL(embed_dim=channels, ddconfig=settings)
        return _vae(network, 2, 8, channels, torch.bfloat16)
    return _vae(AutoencoderKL(embed_dim=channels, ddconfig=_ddconfig(channels)), 2, 2, channels)


def video_vae(channels: int = 16, real: bool = False, newer: bool = False) -> Any:
    """A Wan VAE: pictures eight times the latent's size, four frames a latent frame after the first.

    newer: that of Wan 2.2, sixteen times; real: the same in its own size, in bf16.
    """
    if real or newer:
        from comfy.ldm.wan import vae2_2

        small = {} if real else {"dec_dim": 16}
        network = vae2_2.WanVAE(
            dim=160 if real else 16,
            z_dim=channels,
            dim_mult=[1, 2, 4, 4] if real else [1, 1, 1, 1],
            num_res_blocks=2 if real else 1,
            attn_scales=[],
            temperal_downsample=[False, True, True],
            dropout=0.0,
            **small,
        )
        dtype = torch.bfloat16 if real else torch.float32
        return _vae(network, 3, (lambda frames: max(0, frames * 4 - 3), 16, 16), channels, dtype)
    from comfy.ldm.wan.vae import WanVAE

    wan = WanVAE(
        dim=16,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
    return _vae(wan, 3, (lambda frames: max(0, frames * 4 - 3), 8, 8), channels)


def hunyuan_video_vae(channels: int = 16) -> Any:
    """A HunyuanVideo VAE: pictures twice the latent's size, two frames a latent frame after the first."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    settings = _ddconfig(channels) | {"conv3d": True, "time_compress": 2}
    network = AutoencoderKL(embed_dim=channels, ddconfig=settings)
    return _vae(network, 3, (lambda frames: max(0, frames * 2 - 1), 2, 2), channels)


def latent(*shape: int) -> dict[str, Any]:
    return {"samples": torch.zeros(1, *shape)}
