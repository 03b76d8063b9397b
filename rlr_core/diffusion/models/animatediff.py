"""AnimateDiff on Stable Diffusion 1.5, text to video: a diffusers folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlr_core.diffusion.models import folders
from rlr_core.diffusion.models.base import DiffusionModel, Rows
from rlr_core.diffusion.models.stable_diffusion import StableDiffusion
from rlr_core.diffusion.models.unet import check_size
from rlr_core.errors import UserError

PIPELINE = "AnimateDiffPipeline"
MOTION = ".motion_modules."
CALLED_BY_KEYWORD = (".proj_in", ".proj_out")
"""Layers between the pictures that diffusers calls in a way that peft's layers do not understand."""


class AnimateDiff(StableDiffusion):
    """Stable Diffusion's UNet with layers between the pictures of a video; latents [B, 4, F, H/8, W/8].

    A LoRA goes into the layers that Stable Diffusion has too, so that its file is one for Stable Diffusion;
    with 'all' also into those between the pictures, which diffusers alone loads.
    """

    family = "animatediff"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_dir() and folders.pipeline_class(path) == PIPELINE

    @classmethod
    def load(cls, path: Path, device: torch.device, dtype: torch.dtype) -> AnimateDiff:
        return cls(name=path.name, **_load_folder(path, dtype), device=device, dtype=dtype)

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """(4, frames, height / 8, width / 8)."""
        most = self.unet.config["motion_max_seq_length"]
        if frames > most:
            raise UserError(f"{self.name} makes at most {most} frames, not {frames}.")
        check_size(self.name, height, width, self.latent_scale)
        scale = self.latent_scale
        return (self.unet.config["in_channels"], frames, height // scale, width // scale)

    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """eps or v [B, 4, F, h, w], float32; conditioning as for Stable Diffusion."""
        prompt = self._encoded(conditioning).repeat_interleave(latents.shape[2], 0)  # every picture's own
        output = self.unet(
            latents.to(self.dtype),
            latents.new_full((latents.shape[0],), timestep),
            encoder_hidden_states=prompt,
            return_dict=False,
        )[0]
        return output.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, F, 3, 8 h, 8 w], picture by picture; with checkpointing one at a time is in memory."""
        decode = super().decode
        if self.checkpointing and torch.is_grad_enabled():
            decode = partial(checkpoint, decode, use_reentrant=False, preserve_rng_state=False)
        pictures = latents.transpose(1, 2).flatten(0, 1)
        decoded = [decode(picture) for picture in pictures.split(1)]
        return torch.cat(decoded).unflatten(0, (len(latents), -1))

    def encode(self, pictures: Tensor) -> Tensor:
        return DiffusionModel.encode(self, pictures)

    def lora_layers(self, targets: str | Sequence[str], text_encoder: bool = False) -> list[str]:
        layers = super().lora_layers(targets, text_encoder)
        if targets in ("attention", "attention+ff"):
            return [layer for layer in layers if MOTION not in layer]
        return [layer for layer in layers if not (MOTION in layer and layer.endswith(CALLED_BY_KEYWORD))]


def _load_folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of an AnimateDiffPipeline folder, as keywords of `AnimateDiff`. No network."""
    folders.check_parts(folder, ("unet", "vae", "text_encoder"), ("tokenizer",))

    from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel

    if folders.part_class(folder, "unet") == UNetMotionModel.__name__:
        unet: Any = folders.load_network(UNetMotionModel, folder / "unet", dtype)
    else:
        folders.check_parts(folder, ("motion_adapter",), ())
        plain: Any = folders.load_network(UNet2DConditionModel, folder / "unet", dtype)
        motion: Any = folders.load_network(MotionAdapter, folder / "motion_adapter", dtype)
        unet = UNetMotionModel.from_unet2d(plain, motion)
    encoder = folders.load_clip(folder / "text_encoder", dtype)
    tokenizer = folders.load_tokenizer(folder / "tokenizer", clip=True)
    folders.check_vocabulary(tokenizer, encoder, folder / "tokenizer")
    return {
        "unet": unet,
        "vae": folders.load_network(AutoencoderKL, folder / "vae", dtype),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler_config": folders.scheduler_config(folder, "DDIMScheduler"),
    }
