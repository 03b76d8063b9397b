"""Tensors made in inference mode, as all of ComfyUI's are, turned into ordinary ones without a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor over the same memory that autograd can work with; the tensor itself where it is one already.

    Subclasses (quantised weights) are left alone: they never enter a graph.
    """
    if not tensor.is_inference() or type(tensor) not in (Tensor, nn.Parameter):
        return tensor
    over = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    over.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return over


def make_ordinary(root: Any) -> None:
    """Replace every inference tensor of a module tree, or of a plain object, by an ordinary one in place.

    Covers parameters, buffers and tensors that hang on objects as attributes. Values and memory stay.
    """
    with torch.inference_mode(False), torch.no_grad():
        for owner in root.modules() if isinstance(root, nn.Module) else [root]:
            if isinstance(owner, nn.Module):
                for name, parameter in owner._parameters.items():
                    if parameter is not None and (over := ordinary(parameter)) is not parameter:
                        replaced = nn.Parameter(over, requires_grad=False)
                        replaced.__dict__.update(parameter.__dict__)
                        owner._parameters[name] = replaced
                _replace(owner._buffers)
            _replace(owner.__dict__)


def _replace(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = ordinary(value)


def out_of_inference(value: Any) -> Any:
    """The same tensor, or list or dict of tensors, copied where it was made in inference mode."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, list | tuple):
        return type(value)(out_of_inference(part) for part in value)
    if isinstance(value, dict):
        return {name: out_of_inference(part) for name, part in value.items()}
    return value
