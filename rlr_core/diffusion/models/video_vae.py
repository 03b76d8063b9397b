"""The autoencoders of Wan's kind: causal in time, four pictures to a latent but for the first.

Their decoders go from latent to latent and hand on what their blocks remember of the last pictures, in a
list that the blocks write into. diffusers cannot checkpoint such a decoder; `Checkpointing` can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BLOCKS = ("ResidualBlock", "Resample", "AttentionBlock")
"""Endings of the classes of a decoder's smallest blocks."""


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


class Checkpointing:
    """Recomputes the blocks of a decoder on the way back, each from its input and what it remembered."""

    def __init__(self, decoder: nn.Module):
        self.blocks = [m for m in decoder.modules() if type(m).__name__.endswith(BLOCKS)]

    def enable(self, enabled: bool) -> None:
        """Switch it on or off; on what is so already it does nothing."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)
            if enabled:
                block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x) if feat_cache is None else forward(x, feat_cache, feat_idx)
        if feat_cache is None or feat_idx is None:
            return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)
        remembered, place = list(feat_cache), list(feat_idx)

        def run(x: Tensor) -> tuple[Tensor, list[Any], list[int]]:
            cache, index = list(remembered), list(place)
            return forward(x, cache, index), cache, index

        output, feat_cache[:], feat_idx[:] = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return output

    return call
