"""The autoencoders of Wan's kind: causal in time, four pictures to a latent but for the first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def spatial_scale(vae: Any) -> int:
    """Pixels per latent, each way."""
    return vae.config.get("scale_factor_spatial") or 2 ** len(vae.config["temperal_downsample"])


def to_video_vae(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, F, h, w] as the autoencoder has them."""
    mean, std = _statistics(vae, latents)
    return latents * std + mean


def from_video_vae(vae: Any, latents: Tensor) -> Tensor:
    """The way back."""
    mean, std = _statistics(vae, latents)
    return (latents - mean) / std


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(vae.config[name]).view(shape) for name in ("latents_mean", "latents_std"))
    return mean.to(latents), std.to(latents)
