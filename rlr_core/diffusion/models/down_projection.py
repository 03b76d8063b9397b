"""The first matrix of a LoRA on a half-precision base: float32 arithmetic, half-precision memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DownProjection(nn.Linear):
    """A x with A in float32 and x in the base model's type; the result is float32.

    peft casts x to float32 and autograd keeps that copy for A's gradient, one per adapted layer: half again
    (attention) to as much memory as all other activations together. Here autograd keeps x as it is, one
    tensor for queries, keys and values, and it is cast again on the way back.
    """

    @classmethod
    def replacing(cls, linear: nn.Linear) -> DownProjection:
        """The same layer, with the same parameter."""
        projection = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        projection.weight = linear.weight
        return projection

    def forward(self, x: Tensor) -> Tensor:
        return _CastTwice.apply(x, self.weight)


class _CastTwice(torch.autograd.Function):
    """F.linear(x.to(weight.dtype), weight) that saves x instead of the cast x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to(weight.dtype), weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x = (gradient @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2).to(weight.dtype)
        return to_x, to_weight
