"""What ComfyUI computes with during a run: only kernels that have a gradient, and the same in every pass.

Fused kernels (rotary embeddings, modulated norms) have no way back: models are told that this is training,
and the package that brings them serves its own plain versions. Rollouts take them too: kernels differ in
rounding, and likelihood ratios would see it.

A norm that is a function and no layer keeps its input for the way back, and some models add to that input in
place afterwards: it gets a copy.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.common_dit
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.rmsnorm
import torch
from torch import Tensor


def attention(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """`optimized_attention_override` of the models: PyTorch's own attention, which has a gradient."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


@contextmanager
def differentiable() -> Iterator[None]:
    """Kernels with a gradient for the length of the `with`."""
    with ExitStack() as stack:
        stack.enter_context(_attribute(comfy.model_management, "in_training", True))
        norm = _on_a_copy(comfy.rmsnorm.rms_norm)
        for module in (comfy.rmsnorm, comfy.ldm.common_dit):
            stack.enter_context(_attribute(module, "rms_norm", norm))
        for name, plain in _plain_versions().items():
            stack.enter_context(_attribute(_kitchen(), name, plain))
        yield


def _on_a_copy(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return norm(x.clone() if x.requires_grad and torch.is_grad_enabled() else x, *args, **kwargs)

    return call


def _kitchen() -> Any:
    """The package of fused kernels; None where ComfyUI comes without."""
    try:
        return importlib.import_module("comfy_kitchen")
    except ImportError:
        return None


def _plain_versions() -> dict[str, Callable[..., Any]]:
    """Name of a fused kernel -> the package's version of it in plain PyTorch."""
    kitchen, found = _kitchen(), {}
    for part in ("rope", "adaln") if kitchen is not None else ():
        try:
            module = importlib.import_module(f"comfy_kitchen.backends.eager.{part}")
        except ImportError:
            continue
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if hasattr(kitchen, name) and not name.startswith("_"):
                found[name] = _on_ordinary_tensors(function)
    return found


def _on_ordinary_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on copies of what was made in inference mode (a layer's own weights may be)."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        return function(*map(_ordinary, args), **{name: _ordinary(value) for name, value in kwargs.items()})

    return call


def _ordinary(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute that exists set to a value, and back."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
