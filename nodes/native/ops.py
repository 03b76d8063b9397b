"""Frozen ops: ComfyUI's layers run as they are, autograd keeps none of their weights, an adapter sits beside.

A layer of ComfyUI may hold its weight in any form: cast on the fly, offloaded, patched, in 8 or 4 bits. On
the way forward it runs without autograd. On the way back its weight is asked for again, in the type that
the layer computed in:

    y = layer(x) + strength * alpha / rank * B A x        dL/dx = W^T dL/dy + (through the adapter)

Linear layers and convolutions keep nothing for that; norms keep a copy of their input (some models add to
that input in place afterwards) and run again. Module paths and state_dict stay as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .tensors import ordinary

Original = Callable[..., Tensor]
QUANTIZED = getattr(comfy.ops, "QuantizedTensor", ())
"""ComfyUI's class of quantised weights; () in versions without."""
OFFLOADABLE = hasattr(comfy.ops, "uncast_bias_weight")
"""Whether a cast weight has to be given back."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


class FrozenOps:
    """Frozen ops on every layer of a network while installed, and the adapters beside its linear layers."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.adapters: dict[nn.Module, nn.Module] = {}
        """Layer -> adapter, which takes the layer's input and gives what to add to its output."""
        self._overridden: list[tuple[nn.Module, str]] = []
        self._last_copy: tuple[Callable, int, Callable] = (lambda: None, -1, lambda: None)
        """The last input that was copied for an adapter, its version, and the copy."""

    def install(self) -> None:
        """Put them on. Layers that have been replaced in the meantime are covered by a second call."""
        self.remove()
        for module in self.network.modules():
            if not is_op(module):
                continue
            if is_linear(module):
                self._override(module, "forward", self._linear(module, module.forward))
            elif isinstance(module, CONVOLUTIONS):
                self._override(module, "_conv_forward", _convolution(module, module._conv_forward))
            elif isinstance(module, TRANSPOSED):
                self._override(module, "forward", _transposed(module, module.forward))
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
                self._override(module, "forward", _norm(module, module.forward))

    def remove(self) -> None:
        """Take them off: the layers are ComfyUI's own again."""
        for module, name in self._overridden:
            module.__dict__.pop(name, None)
        self._overridden = []

    def _override(self, module: nn.Module, name: str, function: Original) -> None:
        if name not in module.__dict__:  # never over what another pack has put there
            module.__dict__[name] = function
            self._overridden.append((module, name))

    def _linear(self, module: nn.Module, original: Original) -> Original:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            adapter = self.adapters.get(module)
            output = _Linear.apply(x, module, original, args, kwargs)
            if adapter is None or adapter._disable_adapters:
                return output
            return output + adapter(self._kept(x)).to(output.dtype)

        return forward

    def _kept(self, x: Tensor) -> Tensor:
        """What an adapter may keep of its input: a copy, for models that add to it in place afterwards.

        Layers with one input (queries, keys, values) share the copy.
        """
        if not torch.is_grad_enabled():
            return x
        of, version, copy = self._last_copy
        kept = copy()
        if of() is not x or version != x._version or kept is None:
            kept = x.clone()
            self._last_copy = weakref.ref(x), x._version, weakref.ref(kept)
        return kept


def is_op(module: nn.Module) -> bool:
    """Whether a module is one of ComfyUI's layers (comfy.ops)."""
    return hasattr(module, "comfy_cast_weights")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of ComfyUI; quantised ones are no nn.Linear."""
    return (
        is_op(module)
        and hasattr(module, "in_features")
        and hasattr(module, "out_features")
        and not hasattr(module, "num_experts")
    )


@contextmanager
def cast(
    module: nn.Module, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias of a layer as it computes in this type: on the device, patched, dequantised."""
    if getattr(module, "is_ggml_quantized", bool)():  # of the GGUF pack
        weight, bias = module.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)
        yield weight, bias
        return
    keywords = {"offloadable": True} if OFFLOADABLE else {}
    weight, bias, *handle = comfy.ops.cast_bias_weight(
        module, dtype=dtype, device=device, bias_dtype=dtype, **keywords
    )
    try:
        plain = weight
        if QUANTIZED and isinstance(plain, QUANTIZED):
            plain = plain.dequantize().to(dtype)
        if getattr(module, "scale_weight", None) is not None:  # scaled fp8 of older versions
            plain = plain * module.scale_weight.to(device=device, dtype=dtype)
        yield plain, bias
    finally:
        if OFFLOADABLE:
            comfy.ops.uncast_bias_weight(module, weight, bias, *handle)


def _no_view(output: Tensor) -> Tensor:
    """The same values as no view: autograd forbids to change a view that was made inside a Function."""
    return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, module: nn.Module, original: Original, args: tuple, kwargs: dict) -> Tensor:
        ctx.module, ctx.dtype = module, x.dtype
        x = x.detach()  # quantised layers take another path for what requires a gradient
        if _clamps_its_input(module):
            x = x.clone()
        return _no_view(original(x, *args, **kwargs))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with cast(ctx.module, ctx.dtype, gradient.device) as (weight, _):
            to_x = gradient.to(weight.dtype) @ weight
        smoothing = getattr(ctx.module, "pre_quant_scale", None)
        if smoothing is not None:
            to_x = to_x * smoothing.to(device=to_x.device, dtype=to_x.dtype)
        return to_x.to(ctx.dtype), None, None, None, None


def _clamps_its_input(module: nn.Module) -> bool:
    """ComfyUI's fp8 matrix products (--fast) clamp the tensor that they are given, in place."""
    return "fp8_ops" in type(module).__qualname__


def _convolution(module: nn.Module, original: Original) -> Original:
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, **kwargs: Any) -> Tensor:
        if not plain:  # padded inside: autograd's own way back, over the cast weight
            return original(x, ordinary(weight), bias if bias is None else ordinary(bias), **kwargs)
        return _Convolution.apply(
            x, module, lambda x: original(x, weight, bias, **kwargs), False, bool(kwargs.get("autopad"))
        )

    return forward


def _transposed(module: nn.Module, original: Original) -> Original:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _Convolution.apply(x, module, lambda x: original(x, *args, **kwargs), True, False)

    return forward


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, module: nn.Module, run: Callable[[Tensor], Tensor], transposed: bool, causal: bool
    ) -> Tensor:
        ctx.module, ctx.shape, ctx.dtype = module, x.shape, x.dtype
        ctx.transposed, ctx.causal = transposed, causal
        return _no_view(run(x.detach()))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with cast(ctx.module, ctx.dtype, gradient.device) as (weight, _):
            if ctx.causal:  # zeros before the first frame were left out, with their part of the weight
                weight = weight[:, :, -ctx.shape[2] :]
            to_x = _convolution_backward(ctx.module, gradient, ctx.shape, weight, ctx.transposed)
        return to_x, None, None, None, None


def _convolution_backward(
    module: nn.Module, gradient: Tensor, shape: torch.Size, weight: Tensor, transposed: bool
) -> Tensor:
    """dL/dx [shape] of a convolution: needs the input's shape alone."""
    like_input = gradient.new_empty(1, dtype=weight.dtype).expand(shape)
    padding = module.padding
    to_x, _, _ = torch.ops.aten.convolution_backward(
        gradient.to(weight.dtype),
        like_input,
        weight,
        None,
        module.stride,
        padding,
        module.dilation,
        transposed,
        module.output_padding,
        module.groups,
        [True, False, False],
    )
    return to_x


def _norm(module: nn.Module, original: Original) -> Original:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _Norm.apply(x, module, original, args, kwargs)

    return forward


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, module: nn.Module, original: Original, args: tuple, kwargs: dict) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x.detach().clone())
        return _no_view(original(x.detach(), *args, **kwargs))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        module, (x,) = ctx.module, ctx.saved_tensors
        if getattr(module, "weight", None) is None:
            return _through_norm(module, x, gradient, None, None), None, None, None, None
        with cast(module, x.dtype, x.device) as (weight, bias):
            weight = ordinary(weight)
            bias = bias if bias is None else ordinary(bias)
            return _through_norm(module, x, gradient, weight, bias), None, None, None, None


def _through_norm(
    module: nn.Module, x: Tensor, gradient: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """dL/dx of a norm, by running it again."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        if isinstance(module, nn.GroupNorm):
            output = F.group_norm(x, module.num_groups, weight, bias, module.eps)
        elif isinstance(module, nn.LayerNorm):
            output = F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
        else:
            output = F.rms_norm(x, module.normalized_shape, weight, module.eps)
        return torch.autograd.grad(output, x, gradient.to(output.dtype))[0]
