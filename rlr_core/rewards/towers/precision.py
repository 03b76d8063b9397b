"""Frozen networks in half precision with float32 on both sides, and a gradient that survives the way back;
networks of transformers that save memory on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlr_core.common.weights import parse_dtype


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name; None stays None. Raises UserError for another name."""
    return None if dtype is None else parse_dtype(dtype)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """float16 on an accelerator (its 11 bits resolve scores that bfloat16's 8 blur), float32 on the CPU."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.float16


def recompute_activations(network: Any) -> None:
    """Let a frozen network of transformers keep no activations inside its layers and compute them again.

    Its layers do so in training mode alone, and only they are set to it.
    """
    renamed = hasattr(network, "activation_checkpointing_enable")  # transformers 5
    enable = "activation_checkpointing_enable" if renamed else "gradient_checkpointing_enable"
    getattr(network, enable)({"use_reentrant": False})
    for module in network.modules():
        module.training = hasattr(module, "gradient_checkpointing")


def run_in(dtype: torch.dtype, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """network(x) computed in `dtype`, float32 in and out; x and the result are [B, ...].

    In float16 the gradient is rescaled: what comes in is divided by its largest entry, picture by picture,
    and what goes out is multiplied back. A reward's small weight in a sum can then neither underflow nor
    overflow inside the network, and a picture's gradient does not depend on its neighbors in the batch.
    """
    if dtype is not torch.float16:
        return network(x.float().to(dtype)).float()
    shared: dict[str, Tensor] = {}
    y = network(_ScaleBack.apply(x.float(), shared).to(dtype))
    return _ScaleToOne.apply(y.float(), shared)


class _ScaleToOne(torch.autograd.Function):
    """The identity whose gradient is divided by its largest entry, kept in `shared`."""

    @staticmethod
    def forward(ctx, y: Tensor, shared: dict[str, Tensor]) -> Tensor:
        ctx.shared = shared
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        largest = gradient.flatten(1).abs().amax(1)
        largest = torch.where(largest > 0, largest, 1.0)
        ctx.shared["largest"] = largest
        return gradient / _per_row(largest, gradient), None


class _ScaleBack(torch.autograd.Function):
    """The identity whose gradient is multiplied by the entry that `_ScaleToOne` divided by."""

    @staticmethod
    def forward(ctx, x: Tensor, shared: dict[str, Tensor]) -> Tensor:
        ctx.shared = shared
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient * _per_row(ctx.shared["largest"], gradient), None


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, 1, ...] with as many axes as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))
