"""What cannot be trained, and why, in one sentence each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.model_sampling
from torch import nn

from rlr_core.errors import UserError

from .ops import is_linear, is_op

SAMPLER_OPTIONS = {
    "sampler_cfg_function": "a node that replaces the cfg formula (RescaleCFG, DynamicThresholding, ...)",
    "sampler_pre_cfg_function": "a node that works before the cfg formula",
    "sampler_post_cfg_function": "a node that works after the cfg formula (PAG, SAG, SLG, ...)",
    "sampler_calc_cond_batch_function": "a node that replaces the evaluation of conditionings",
    "model_function_wrapper": "a node that wraps the model",
    "denoise_mask_function": "differential diffusion",
    "context_handler": "context windows",
}
CONDITIONING = {
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "area": "an area",
    "mask": "a mask",
    "hooks": "hooks",
    "start_percent": "a range of steps",
    "end_percent": "a range of steps",
    "clip_start_percent": "a range of steps",
    "additional_models": "additional models",
}
HIGH_NOISE = re.compile(r"high[-_]?noise", re.IGNORECASE)
IMAGE_TO_IMAGE = tuple(
    getattr(comfy.model_sampling, name)
    for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
    if hasattr(comfy.model_sampling, name)
)


def check_model(patcher: Any) -> None:
    """Raise UserError if a MODEL has something on it that the engine's chain would not do."""
    options = patcher.model_options
    for name, what in SAMPLER_OPTIONS.items():
        if options.get(name):
            raise UserError(f"The MODEL comes through {what}, which cannot be trained: connect it without.")
    if getattr(patcher, "hook_patches", None):
        raise UserError("The MODEL has hooks, which change it from step to step: connect it without.")
    network = patcher.model.diffusion_model
    compiled = any("compile" in str(key).lower() for key in _wrappers(patcher)) or any(
        type(patched).__name__ == "OptimizedModule" for patched in patcher.object_patches.values()
    )
    if compiled or type(network).__name__ == "OptimizedModule":
        raise UserError("The MODEL is compiled (torch.compile): connect it without the compile node.")
    if "nunchaku" in type(network).__module__ or not any(map(is_op, network.modules())):
        raise UserError(
            f"{type(network).__name__} is not made of ComfyUI's own layers (nunchaku and other engines are "
            "not), so there is no place for a LoRA: load the model with a stock loader."
        )
    if not any(map(is_linear, network.modules())):
        raise UserError(f"{type(network).__name__} has no linear layer that a LoRA could go into.")
    banks = [
        type(module).__name__
        for module in network.modules()
        if hasattr(module, "num_experts") and is_op(module)
    ]
    if banks:
        raise UserError(
            f"{type(network).__name__} keeps its experts in banks ({banks[0]}), which cannot be trained."
        )
    sampling = patcher.get_model_object("model_sampling")
    if isinstance(sampling, IMAGE_TO_IMAGE):
        raise UserError(f"{type(patcher.model).__name__} starts from a picture, not from noise.")


def check_files(files: Sequence[str]) -> None:
    """Raise UserError for a network that makes the first steps alone, as its file's name tells."""
    for file in files:
        if HIGH_NOISE.search(file):
            raise UserError(
                f"{file} makes only the noisy first steps of Wan 2.2 14B, which a second network finishes: "
                "train the low noise file, Wan 2.2 5B or Wan 2.1."
            )


def check_attention() -> None:
    """Raise UserError if ComfyUI was started with an attention that has no gradient."""
    flags: dict[str, Callable[[], bool] | None] = {
        "--use-sage-attention": getattr(comfy.model_management, "sage_attention_enabled", None),
        "--use-flash-attention": getattr(comfy.model_management, "flash_attention_enabled", None),
    }
    for flag, enabled in flags.items():
        if enabled is not None and enabled():
            raise UserError(f"ComfyUI runs with {flag}, which has no gradient: start it without to train.")


def check_conditioning(encoded: list[Any]) -> None:
    """Raise UserError if what a CLIP gives is more than one plain conditioning."""
    if len(encoded) != 1:
        raise UserError("The CLIP has hooks that change it from step to step: connect it without.")
    for name, what in CONDITIONING.items():
        if encoded[0][1].get(name) is not None:
            raise UserError(f"The CLIP's conditioning has {what} on it, which cannot be trained with.")


def check_latent(samples: Any) -> None:
    """Raise UserError if a LATENT is no single batch of latents."""
    if getattr(samples, "is_nested", False):
        raise UserError("This latent packs several streams (video and audio), which cannot be trained.")


def check_vae(vae: Any) -> None:
    """Raise UserError if a VAE gives no pictures."""
    if vae.first_stage_model is None:
        raise UserError("The VAE is empty: the file that it was loaded from holds none.")
    if vae.latent_dim not in (2, 3) or getattr(vae, "output_channels", 3) != 3:
        raise UserError(f"The VAE gives no pictures ({type(vae.first_stage_model).__name__}).")


def check_text_encoder(wanted: bool) -> None:
    """Raise UserError if a LoRA on the text encoder is asked for."""
    if wanted:
        raise UserError(
            "A LoRA on the text encoder is trained with RLR Load Checkpoint only; turn text_encoder off."
        )


def _wrappers(patcher: Any) -> list[Any]:
    return [key for wrappers in getattr(patcher, "wrappers", {}).values() for key in wrappers]


def latent_streams(base: nn.Module) -> bool:
    """Whether a model packs several streams (video and audio) into one latent."""
    return type(base).__name__.upper().endswith("AV")
