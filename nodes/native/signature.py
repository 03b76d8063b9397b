"""Which weights and patches a MODEL, CLIP and VAE are: the same for the same files in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SAMPLED = 16
"""Values of every tensor that go into the signature."""
UNSURE = "text_projection.weight"
"""Many CLIP files leave it out, and ComfyUI then leaves whatever was in that memory."""


def signature(model: Any, clip: Any = None, vae: Any = None) -> str:
    """64 bits of hash as hex, from every weight's name, shape, type and some values, and every patch on it.

    model: ComfyUI's MODEL; clip, vae: those that train with it.
    """
    digest = hashlib.sha256()
    for line in _lines(model, clip, vae):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _lines(model: Any, clip: Any, vae: Any) -> Iterator[str]:
    yield type(model.model).__name__
    yield from _patcher("model", model)
    sampling = model.get_model_object("model_sampling")
    kinds = [kind.__name__ for kind in type(sampling).__mro__ if kind.__module__ == "comfy.model_sampling"]
    yield f"sampling {kinds}"
    yield from _named("sampling", {"sigmas": getattr(sampling, "sigmas", None)})
    if clip is not None:
        yield from _patcher("clip", clip.patcher)
        yield f"clip layer {getattr(clip, 'layer_idx', None)}"
    if vae is not None:
        yield from _patcher("vae", vae.patcher)


def _patcher(name: str, patcher: Any) -> Iterator[str]:
    """Weights as they were before any patch was baked in, then the patches."""
    weights: dict[str, Any] = {
        **dict(patcher.model.named_parameters()),
        **dict(patcher.model.named_buffers()),
    }
    for key, saved in getattr(patcher, "backup", {}).items():
        weights[key] = getattr(saved, "weight", saved)
    yield from _named(name, {key: value for key, value in weights.items() if not key.endswith(UNSURE)})
    for key in sorted(map(str, patcher.patches)):
        for strength, value, strength_model, offset, _ in patcher.patches.get(key, ()):
            yield f"patch {key} {strength} {strength_model} {offset}"
            yield from _value(key, value)


def _value(name: str, value: Any) -> Iterator[str]:
    """Whatever a patch holds: tensors, adapters with weights, numbers, in lists and tuples."""
    if isinstance(value, Tensor):
        yield f"{name} {list(value.shape)} {value.dtype} {_sample(value)}"
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _value(f"{name}/{number}", part)
    elif hasattr(value, "weights"):
        yield from _value(f"{name}/{getattr(value, 'name', '')}", list(value.weights))
    elif value is None or isinstance(value, str | int | float | bool):
        yield f"{name} {value}"


def _named(name: str, tensors: dict[str, Any]) -> Iterator[str]:
    for key in sorted(tensors):
        tensor = tensors[key]
        if isinstance(tensor, Tensor):
            yield f"{name} {key} {list(tensor.shape)} {tensor.dtype} {_sample(tensor)}"
            scale = getattr(getattr(tensor, "_params", None), "scale", None)  # of a quantised weight
            if isinstance(scale, Tensor):
                yield f"{name} {key} scale {_sample(scale)}"


def _sample(tensor: Tensor) -> list[float]:
    """Some of a tensor's values, evenly taken."""
    with torch.no_grad():
        stored = getattr(tensor, "_qdata", tensor)  # of a quantised weight
        plain = stored.data.as_subclass(Tensor)
        if plain.is_meta or not plain.numel():
            return []
        if plain.element_size() == 1:
            plain = plain.view(torch.uint8) if plain.dtype != torch.bool else plain
        flat = plain.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(SAMPLED, flat.numel()), dtype=torch.float64)
        return flat[places.round().long().to(flat.device)].double().tolist()
