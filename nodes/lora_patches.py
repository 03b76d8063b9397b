"""A LoRA on ComfyUI's own models: for all of the steps as stock LoraLoader does it, or for a part of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.lora.formats import acts, is_text_encoder


def put_on(
    model: Any,
    clip: Any,
    lora: Any,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> tuple[Any, Any]:
    """Copies of a MODEL and a CLIP (or None) with a LORA_MODEL on, from one share of the steps to another.

    A LoRA that was trained for a part of the steps acts in what that part and this one have in common.
    Raises UserError where that is nothing.
    """
    first, last = acts(getattr(lora, "metadata", {}))
    start, end = max(start_percent, first), min(end_percent, last)
    if start >= end:
        raise UserError(
            f"This LoRA was trained for the steps from {first:g} to {last:g}, and between start_percent "
            f"{start_percent:g} and end_percent {end_percent:g} there are none of them: set 0 and 1."
        )
    weights = dict(lora)
    if (start, end) == (0, 1) or strength_model == 0:
        return patch(model, clip, weights, strength_model, strength_clip)
    changes = low_rank_changes(model, weights)
    wrapper = _for_a_part(changes, strength_model, sigma_at(model, start), sigma_at(model, end))
    changed_clip = patch(None, clip, weights, 0.0, strength_clip)[1] if clip is not None else None
    return clone_with_wrapper(model, f"rlr_lora_{id(wrapper)}", wrapper), changed_clip


def patch(model: Any, clip: Any, weights: dict[str, torch.Tensor], on_model: float, on_clip: float) -> tuple:
    """Copies of a MODEL and a CLIP (each may be None) with a LoRA for all steps, as stock LoraLoader does.

    The part for what is None is left aside. Raises UserError if nothing of it has a place.
    """
    import comfy.sd

    of_model, of_clip = split_lora(weights)
    if model is not None:
        placed(model, weights)
    weights = (of_model if model is not None else {}) | (of_clip if clip is not None else {})
    return comfy.sd.load_lora_for_models(model, clip, weights, on_model, on_clip)


def split_lora(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors for the denoiser, and those for text encoders."""
    of_clip = {key: tensor for key, tensor in weights.items() if is_text_encoder(key)}
    return {key: tensor for key, tensor in weights.items() if key not in of_clip}, of_clip


def low_rank_changes(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, tuple]:
    """Module path in the MODEL -> (up, down, alpha) of the denoiser's part of a LoRA.

    Raises UserError if it is no plain LoRA, or if nothing of it has a place.
    """
    changes = {}
    for key, adapter in placed(model, weights).items():
        parts = getattr(adapter, "weights", None)
        key = key if isinstance(key, str) else key[0]
        if getattr(adapter, "name", "") != "lora" or any(part is not None for part in parts[3:]):
            raise UserError(
                "Only a plain LoRA can be applied to a part of the steps; apply it to all of them."
            )
        changes[key.removesuffix(".weight")] = (parts[0], parts[1], parts[2])
    return changes


def placed(model: Any, weights: dict[str, torch.Tensor]) -> dict[Any, Any]:
    """Weight in the MODEL -> what the denoiser's part of a LoRA does to it.

    Raises UserError if nothing of it has a place.
    """
    import comfy.lora
    import comfy.lora_convert

    of_model, of_clip = split_lora(weights)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(of_model), key_map, log_missing=False)
    if not patches and (of_model or not of_clip):
        raise UserError("This LoRA was made for another model: none of its parts has a place in it.")
    return patches


def clone_with_wrapper(model: Any, key: str, wrapper: Callable) -> Any:
    """A copy of a MODEL whose every evaluation goes through wrapper(executor, x, t, *args, **kwargs)."""
    import comfy.patcher_extension

    copy = model.clone()
    copy.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, key, wrapper)
    return copy


def sigma_at(model: Any, percent: float) -> float:
    """The noise level at which this share of the sampling lies behind."""
    return float(model.get_model_object("model_sampling").percent_to_sigma(percent))


def _for_a_part(changes: dict[str, tuple], strength: float, first: float, last: float) -> Callable:
    """A wrapper that adds strength * alpha / rank * up down x to each module while last < sigma <= first.

    The weights themselves stay as they are, so that it works beside every other patch and offloading.
    """
    held: dict[tuple, tuple[Tensor, Tensor]] = {}  # copies on the device, made at the first use

    def adding(path: str) -> Callable:
        up, down, alpha = changes[path]
        scale = strength * (1.0 if alpha is None else float(alpha) / down.shape[0])

        def hook(module: Any, inputs: tuple, output: Tensor) -> Tensor:
            x = inputs[0]
            key = (path, x.device, x.dtype)
            if key not in held:
                held[key] = (up.to(x.device, x.dtype), down.to(x.device, x.dtype))
            return output + scale * _low_rank(module, x, *held[key])

        return hook

    def wrapper(executor: Callable, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sigma = float(t.max())
        if not last < sigma <= first:
            return executor(x, t, *args, **kwargs)
        network = executor.class_obj
        hooks = [network.get_submodule(path).register_forward_hook(adding(path)) for path in changes]
        try:
            return executor(x, t, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    return wrapper


def _low_rank(module: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """up down x for a linear layer, or for a convolution, whose stride and padding the first half takes."""
    if getattr(module, "kernel_size", None) is None:
        return F.linear(F.linear(x, down.flatten(1)), up.flatten(1))
    down = down if down.ndim == 4 else down[:, :, None, None]
    up = up if up.ndim == 4 else up[:, :, None, None]
    inner = F.conv2d(x, down, None, module.stride, module.padding, module.dilation, module.groups)
    return F.conv2d(inner, up)
