"""Qwen-Image: a diffusers folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.flow_transformer import FlowTransformer
from rlr_core.diffusion.models.patches import pack, unpack
from rlr_core.diffusion.models.video_vae import from_video_vae, spatial_scale, to_video_vae

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FEED_FORWARD = ("net.0.proj", "net.2")
MODULATION = ("img_mod.1", "txt_mod.1")
LONG = 256  # tokens of a long prompt; 1024 are the most


class QwenImage(FlowTransformer):
    """A transformer on patches of latents [B, 16, H/8, W/8], told the prompt by a language model."""

    family = "qwen-image"
    pipeline = "QwenImagePipeline"
    transformer_class = "QwenImageTransformer2DModel"
    vae_class = "AutoencoderKLQwenImage"
    text_encoders = {"text_encoder": ("Qwen2_5_VLForConditionalGeneration",)}
    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD + MODULATION,
    }

    def _latent_scale(self) -> int:
        return spatial_scale(self.vae)

    def _encode(self, pipeline: Any, prompts: list[str]) -> Rows:
        """{'prompt': [N, L, D], 'mask': [N, L]}."""
        prompt, mask = pipeline.encode_prompt(prompts, device=self.device)
        if mask is None:
            mask = torch.ones(prompt.shape[:2], device=prompt.device)
        return {"prompt": prompt, "mask": mask.bool()}

    def _prompt_sizes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (LONG, self.transformer.config["joint_attention_dim"]), "mask": (LONG,)}

    def _channels(self) -> int:
        return self.transformer.config["in_channels"] // 4

    def guide(self, without: Tensor, with_prompt: Tensor, scale: float) -> Tensor:
        """As its pipeline guides: every patch as long as it is with the prompt alone."""
        height, width = with_prompt.shape[-2:]
        guided, prompted = pack(super().guide(without, with_prompt, scale)), pack(with_prompt)
        lengths = prompted.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return unpack(guided * lengths, height, width)

    def _velocity(self, latents: Tensor, times: Tensor, conditioning: Rows) -> Tensor:
        height, width = latents.shape[-2:]
        tokens = self.transformer(
            hidden_states=pack(latents),
            timestep=times / 1000,
            encoder_hidden_states=conditioning["prompt"].to(self.dtype),
            encoder_hidden_states_mask=conditioning["mask"].to(latents.device),
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def _to_vae(self, latents: Tensor) -> Tensor:
        return to_video_vae(self.vae, latents[:, :, None])

    def _from_vae(self, latents: Tensor) -> Tensor:
        return from_video_vae(self.vae, latents)[:, :, 0]

    def _picture(self, pixels: Tensor) -> Tensor:
        return pixels[:, :, 0]

    def _pixels(self, pictures: Tensor) -> Tensor:
        return pictures[:, :, None]
