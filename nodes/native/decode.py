"""Pixels by ComfyUI's VAE, with a gradient: stock `vae.decode` has none and may tile."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .tensors import out_of_inference


def decode(base: Any, vae: Any, latents: Tensor) -> Tensor:
    """Pixels [B, 3, H, W], or [B, F, 3, H, W] for more than one frame, float32 in [0, 1].

    base: ComfyUI's model, which knows how its latents are scaled; vae: ComfyUI's, loaded.
    """
    latents = base.process_latent_out(latents)
    if vae.latent_dim == 2 and latents.ndim == 5:
        latents = latents[:, :, 0]
    pixels = vae.first_stage_model.decode(latents.to(device=vae.device, dtype=vae.vae_dtype))
    pixels = vae.process_output(out_of_inference(pixels).float().clone())  # in place, hence the copy
    if pixels.ndim == 5:
        pixels = pixels.movedim(2, 1)
        if pixels.shape[1] == 1:
            pixels = pixels[:, 0]
    return pixels.to(latents.device)


def frames_of(vae: Any, latent_frames: int) -> int:
    """Frames of the pictures that so many latent frames make."""
    ratio = vae.upscale_ratio
    if vae.latent_dim == 2 or not isinstance(ratio, tuple):
        return latent_frames
    return int(ratio[0](latent_frames)) if callable(ratio[0]) else int(latent_frames * ratio[0])


def pixels_of(vae: Any) -> int:
    """Pixels per latent, each way."""
    ratio = vae.upscale_ratio
    return int(ratio[-1] if isinstance(ratio, tuple) else ratio)
