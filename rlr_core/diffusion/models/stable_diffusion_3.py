"""Stable Diffusion 3 and 3.5: a diffusers folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.flow_transformer import FlowTransformer

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FEED_FORWARD = ("net.0.proj", "net.2")
MODULATION = ("norm1.linear", "norm1_context.linear")


class StableDiffusion3(FlowTransformer):
    """A transformer on latents [B, 16, H/8, W/8], told the prompt by two CLIPs and, where it is there, T5."""

    family = "stable-diffusion-3"
    pipeline = "StableDiffusion3Pipeline"
    transformer_class = "SD3Transformer2DModel"
    text_encoders = {
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
    }
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    optional = ("text_encoder_3", "tokenizer_3")
    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD + MODULATION,
    }

    def _default_size(self) -> tuple[int, int]:
        side = self.transformer.config["sample_size"] * self.latent_scale
        return side, side

    def _encode(self, pipeline: Any, prompts: list[str]) -> Rows:
        """{'prompt': [N, L, D], 'pooled': [N, P]}."""
        pipeline.transformer = self.transformer  # it says how wide the tokens of a missing T5 are
        prompt, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt": prompt, "pooled": pooled}

    def _prompt_sizes(self) -> dict[str, tuple[int, ...]]:
        config = self.transformer.config
        return {
            "prompt": (77 + 256, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def _set_levels(self, scheduler: Any, sampler: SamplerConfig) -> None:
        """The scheduler's own levels."""
        dynamic = self.scheduler_config.get("use_dynamic_shifting")
        scheduler.set_timesteps(sampler.steps, **({"mu": self._shift(sampler)} if dynamic else {}))

    def _velocity(self, latents: Tensor, times: Tensor, conditioning: Rows) -> Tensor:
        return self.transformer(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=conditioning["prompt"].to(self.dtype),
            pooled_projections=conditioning["pooled"].to(self.dtype),
            return_dict=False,
        )[0]
