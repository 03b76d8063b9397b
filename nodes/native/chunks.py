"""The way back through decoders of video that work in chunks of frames: a chunk at a time, and exactly.

Such a decoder is called for a few latent frames after the other, with a list of what the calls before left
behind. Autograd would keep the activations of all of them. Here every call keeps its inputs alone, in RAM
where it runs on a GPU, and runs again when the way back comes to it; the gradient goes on to the calls before
through what they left behind. So the peak is that of one chunk, however long the video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten


class Chunks:
    """Every call of a first-stage model's decoder that hands a list on is recomputed, while installed."""

    def __init__(self, first_stage_model: nn.Module):
        self.decoder = getattr(first_stage_model, "decoder", None)
        self._installed = False

    def install(self) -> None:
        """Put it on; a decoder whose forward is already someone else's stays as it is."""
        self.remove()
        if isinstance(self.decoder, nn.Module) and "forward" not in self.decoder.__dict__:
            self.decoder.__dict__["forward"] = _recomputed(self.decoder.forward)
            self._installed = True

    def remove(self) -> None:
        """Take it off."""
        if self._installed:
            self.decoder.__dict__.pop("forward", None)
        self._installed = False


def lists_of(args: tuple, kwargs: dict[str, Any]) -> list[list]:
    """Arguments that a call may leave something behind in."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, list)]


def _recomputed(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        left_behind = lists_of(args, kwargs)
        if not left_behind or not torch.is_grad_enabled():
            return original(*args, **kwargs)
        call = _Call(original, args, kwargs)
        with resting(call.tensors):
            tensors = _Chunk.apply(call, *call.tensors)
        output, now = call.result(tensors)
        for before, after in zip(left_behind, now, strict=True):
            before[:] = after
        return output

    return forward


def resting(tensors: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """In which what a call keeps of these goes to RAM, where it is on a GPU."""
    on_gpu = any(tensor.is_cuda for tensor in tensors)
    return torch.autograd.graph.save_on_cpu() if on_gpu else nullcontext()


class _Call:
    """One call of a function as one from tensors to tensors; lists among its arguments count as results."""

    def __init__(self, original: Callable[..., Any], args: tuple, kwargs: dict[str, Any]):
        self.original = original
        values, self._form = tree_flatten((args, kwargs))
        self.tensors = [value for value in values if isinstance(value, Tensor)]
        self._others = [None if isinstance(value, Tensor) else value for value in values]
        self._places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]

    def run(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors of the result. The first run says how `result` puts them together."""
        values = list(self._others)
        for place, tensor in zip(self._places, tensors, strict=True):
            values[place] = tensor
        args, kwargs = tree_unflatten(values, self._form)
        found, self._result_form = tree_flatten((self.original(*args, **kwargs), lists_of(args, kwargs)))
        self._rest = [None if isinstance(value, Tensor) else value for value in found]
        self._result_places = [place for place, value in enumerate(found) if isinstance(value, Tensor)]
        self.tensors = []  # held by autograd from here on
        return tuple(found[place] for place in self._result_places)

    def result(self, tensors: tuple[Tensor, ...]) -> tuple[Any, list[list]]:
        """What the call gave, and its lists as they are after it."""
        values = list(self._rest)
        for place, tensor in zip(self._result_places, tensors, strict=True):
            values[place] = tensor
        return tree_unflatten(values, self._result_form)


class _Chunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(map(_alone, call.run(tensors)))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        tensors = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            outputs = ctx.call.run(tuple(tensors))
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [tensor for tensor in tensors if tensor.requires_grad],
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
        )
        return None, *(next(found) if need else None for need in needed)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: a few frames of many must not hold on to the rest."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
