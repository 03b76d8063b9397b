"""Gradient checkpointing of autoencoders' decoders, block by block: the most memory of a run is theirs.

diffusers checkpoints a resolution at a time, whose blocks together are most of it, and decoders of videos not
at all: those go from latent to latent and hand on what their blocks remember of the last pictures, in a list
that the blocks write into.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BLOCKS = ("ResnetBlock2D", "Upsample2D", "Attention", "ResidualBlock", "Resample", "AttentionBlock")
"""Endings of the classes of the smallest blocks."""
MEMORY = "feat_cache"
"""The argument of blocks that remember."""


class DecoderCheckpointing:
    """Recomputes the blocks of a decoder on the way back, each from its input and what it remembered."""

    def __init__(self, decoder: nn.Module):
        self.blocks = [m for m in decoder.modules() if type(m).__name__.endswith(BLOCKS)]

    def enable(self, enabled: bool) -> None:
        """Switch it on or off; on what is so already it does nothing."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)
            if enabled:
                remembers = MEMORY in inspect.signature(block.forward).parameters
                block.forward = (_with_memory if remembers else _plain)(block.forward)


def _plain(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call


def _with_memory(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None) -> Tensor:
        if feat_cache is None or feat_idx is None:
            return _plain(forward)(x)
        if not torch.is_grad_enabled():
            return forward(x, feat_cache, feat_idx)
        remembered, place = list(feat_cache), list(feat_idx)

        def run(x: Tensor) -> tuple[Tensor, list[Any], list[int]]:
            cache, index = list(remembered), list(place)
            return forward(x, cache, index), cache, index

        output, feat_cache[:], feat_idx[:] = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return output

    return call
