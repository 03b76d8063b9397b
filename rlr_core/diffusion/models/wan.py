"""Wan 2.1 and Wan 2.2 5B, text to video: a diffusers folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlr_core.diffusion.models import folders
from rlr_core.diffusion.models.base import DiffusionModel, Rows
from rlr_core.diffusion.models.flow_transformer import FlowTransformer
from rlr_core.diffusion.models.unet import check_size
from rlr_core.diffusion.models.video_vae import spatial_scale, to_video_vae
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

PROMPT_LENGTH = 512
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")
ORIGINAL_NAMES = (
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.to_out\.0$", ".o"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
)
"""diffusers' names of a block's layers -> those of the original code, which ComfyUI has."""
OWN_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


class Wan(FlowTransformer):
    """A transformer on the latents [B, C, F, H/8, W/8] of a video autoencoder, told the prompt by UMT5.

    Of 1 + 4 k pictures, F is 1 + k.
    """

    family = "wan"
    pipeline = "WanPipeline"
    transformer_class = "WanTransformer3DModel"
    vae_class = "AutoencoderKLWan"
    text_encoders = {"text_encoder": ("UMT5EncoderModel",)}
    float32_vae = True
    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD,
    }

    def __init__(self, **parts: Any):
        super().__init__(**parts)
        if "flow_shift" in self.scheduler_config:  # what the published scheduler calls it
            self.scheduler_config["shift"] = self.scheduler_config["flow_shift"]
        self.denoiser = self.transformer
        self.pictures_per_latent = self.vae.config["scale_factor_temporal"]

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return super().recognizes(path) and folders.index(path).get("boundary_ratio") is None

    @classmethod
    def load(
        cls, path: Path, device: torch.device, dtype: torch.dtype, bits: int | None = None
    ) -> FlowTransformer:
        model = super().load(path, device, dtype, bits)
        check_text_to_video(path, model.transformer)
        return model

    def _latent_scale(self) -> int:
        return spatial_scale(self.vae)

    def _default_size(self) -> tuple[int, int]:
        return (704, 1280) if self.index.get("expand_timesteps") else (480, 832)

    def _encode(self, pipeline: Any, prompts: list[str]) -> Rows:
        """{'prompt': [N, 512, D]}."""
        prompt, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=PROMPT_LENGTH, device=self.device
        )
        return {"prompt": prompt}

    def _prompt_sizes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (PROMPT_LENGTH, self.transformer.config["text_dim"])}

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """(C, 1 + (frames - 1) / 4, height / 8, width / 8)."""
        group = self.pictures_per_latent
        if (frames - 1) % group:
            nearest = 1 + round((frames - 1) / group) * group
            raise UserError(
                f"{frames} frames do not fit {self.name}, which makes 1 + {group} k of them: set frames to "
                f"{nearest}."
            )
        check_size(self.name, height, width, self.latent_scale * self.patch)
        scale = self.latent_scale
        return (self._channels(), 1 + (frames - 1) // group, height // scale, width // scale)

    def _set_levels(self, scheduler: Any, sampler: SamplerConfig) -> None:
        """The scheduler's own levels; even ones, shifted, where the folder names another class."""
        if self.scheduler_config.get("_class_name") == OWN_SCHEDULER:
            scheduler.set_timesteps(sampler.steps)
        else:
            scheduler.set_timesteps(sigmas=[1 - index / sampler.steps for index in range(sampler.steps)])

    def _velocity(self, latents: Tensor, times: Tensor, conditioning: Rows) -> Tensor:
        if self.index.get("expand_timesteps"):  # every patch is told the time
            _, _, frames, height, width = latents.shape
            times = times[:, None].expand(-1, frames * (height // self.patch) * (width // self.patch))
        return self.denoiser(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=conditioning["prompt"].to(self.dtype),
            return_dict=False,
        )[0]

    def _to_vae(self, latents: Tensor) -> Tensor:
        return to_video_vae(self.vae, latents)

    def _picture(self, pixels: Tensor) -> Tensor:
        """[B, F, 3, H, W] of [B, 3, F, H, W]."""
        return pixels.transpose(1, 2)

    def encode(self, pictures: Tensor) -> Tensor:
        return DiffusionModel.encode(self, pictures)

    def lora_key(self, layer: str, layout: str) -> str:
        """'diffusion_model.' and the original code's path, which ComfyUI and diffusers both know."""
        path = layer.partition(".")[2]
        for pattern, original in ORIGINAL_NAMES:
            path = re.sub(pattern, original, path)
        return f"diffusion_model.{path}"

    def lora_key_aliases(self, layer: str, layout: str) -> Sequence[str]:
        """diffusers' own name, which is the same for a second transformer."""
        return (f"transformer.{layer.partition('.')[2]}",)


def check_text_to_video(path: Path, transformer: Any) -> None:
    """Raise UserError for a transformer that is told a picture."""
    config = transformer.config
    if config["image_dim"] is not None or config["in_channels"] != config["out_channels"]:
        raise UserError(f"{path} makes videos from pictures; use a text-to-video model.")
