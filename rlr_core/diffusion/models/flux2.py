"""FLUX.2 klein, base and distilled: a diffusers folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.flow_transformer import FlowTransformer
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
             "to_qkv_mlp_proj", "attn.to_out")  # fmt: skip
FEED_FORWARD = ("linear_in", "linear_out")
PACKED = 2  # latents of the autoencoder in one of the transformer's, each way


class Flux2Klein(FlowTransformer):
    """A transformer on latents [B, 128, H/16, W/16], told the prompt by a language model."""

    family = "flux2"
    pipeline = "Flux2KleinPipeline"
    transformer_class = "Flux2Transformer2DModel"
    vae_class = "AutoencoderKLFlux2"
    text_encoders = {"text_encoder": ("Qwen3ForCausalLM",)}
    patch = 1
    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD,
    }

    def __init__(self, **parts: Any):
        super().__init__(**parts)
        if self.transformer.config["guidance_embeds"]:
            raise UserError(
                f"{self.name} has embedded guidance, which FLUX.2 klein has not: use a klein model."
            )
        self.guidance_kind = "none" if self.index.get("is_distilled") else "cfg"
        self._places: dict[tuple[int, int, int], Tensor] = {}

    def _latent_scale(self) -> int:
        return super()._latent_scale() * PACKED

    def _default_size(self) -> tuple[int, int]:
        return 64 * self.latent_scale, 64 * self.latent_scale

    def _encode(self, pipeline: Any, prompts: list[str]) -> Rows:
        """{'prompt': [N, L, D]}."""
        prompt, _ = pipeline.encode_prompt(prompts, device=self.device)
        return {"prompt": prompt}

    def _prompt_sizes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (512, self.transformer.config["joint_attention_dim"])}

    def _shift(self, sampler: SamplerConfig) -> float:
        """mu as fitted by its authors to the number of patches and of steps."""
        patches = self._patches(sampler)
        many = 0.00016927 * patches + 0.45666666  # at 200 steps
        if patches > 4300:
            return many
        few = 8.73809524e-05 * patches + 1.89833333  # at 10 steps
        return many + (few - many) * (200 - sampler.steps) / 190

    def _velocity(self, latents: Tensor, times: Tensor, conditioning: Rows) -> Tensor:
        height, width = latents.shape[-2:]
        prompt = conditioning["prompt"].to(self.dtype)
        tokens = self.transformer(
            hidden_states=latents.flatten(2).transpose(1, 2),  # [B, h w, C]
            timestep=times / 1000,
            encoder_hidden_states=prompt,
            txt_ids=self._place(1, 1, prompt.shape[1]).expand(len(latents), -1, -1),
            img_ids=self._place(height, width, 1).expand(len(latents), -1, -1),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def _place(self, rows: int, columns: int, tokens: int) -> Tensor:
        """[1, N, 4]: 0, row, column and token of every place."""
        if (rows, columns, tokens) not in self._places:
            sides = (torch.arange(side) for side in (1, rows, columns, tokens))
            self._places[rows, columns, tokens] = torch.cartesian_prod(*sides)[None].to(self.device)
        return self._places[rows, columns, tokens]

    def _to_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        patches = (latents * std + mean).unflatten(1, (-1, PACKED, PACKED))  # [B, C, 2, 2, h, w]
        return patches.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)

    def _from_vae(self, latents: Tensor) -> Tensor:
        patches = latents.unflatten(2, (-1, PACKED)).unflatten(4, (-1, PACKED))  # [B, C, h, 2, w, 2]
        packed = patches.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        mean, std = self._statistics(packed)
        return (packed - mean) / std

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of every channel, from the autoencoder's batch norm."""
        norm = self.vae.bn
        std = (norm.running_var + self.vae.config["batch_norm_eps"]).sqrt()
        return norm.running_mean.view(1, -1, 1, 1).to(latents), std.view(1, -1, 1, 1).to(latents)
