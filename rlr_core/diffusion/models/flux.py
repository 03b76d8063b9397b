"""FLUX.1 dev and schnell: a diffusers folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.flow_transformer import FlowTransformer
from rlr_core.diffusion.models.patches import pack, unpack

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FEED_FORWARD = ("net.0.proj", "net.2", "proj_mlp", "proj_out")
MODULATION = ("norm.linear", "norm1.linear", "norm1_context.linear")
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


class Flux(FlowTransformer):
    """A transformer on patches of latents [B, 16, H/8, W/8], told the prompt by T5 and a pooled CLIP, and,
    where it is distilled to it, the guidance."""

    family = "flux"
    pipeline = "FluxPipeline"
    transformer_class = "FluxTransformer2DModel"
    text_encoders = {"text_encoder": ("CLIPTextModel",), "text_encoder_2": ("T5EncoderModel",)}
    tokenizers = ("tokenizer", "tokenizer_2")
    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD + MODULATION,
    }

    def __init__(self, **parts: Any):
        super().__init__(**parts)
        self.guidance_kind = "embedded" if self.transformer.config["guidance_embeds"] else "none"
        self._places: dict[tuple[int, int], Tensor] = {}

    @property
    def architecture(self) -> str:
        return "flux-1-dev" if self.guidance_kind == "embedded" else "flux-1-schnell"

    def _encode(self, pipeline: Any, prompts: list[str]) -> Rows:
        """{'prompt': [N, L, D], 'pooled': [N, P]}."""
        prompt, pooled, _ = pipeline.encode_prompt(prompts, prompts, device=self.device)
        return {"prompt": prompt, "pooled": pooled}

    def _prompt_sizes(self) -> dict[str, tuple[int, ...]]:
        config = self.transformer.config
        return {"prompt": (512, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def adaptable(self, network: str) -> list[str]:
        """Layers of its blocks: the one that makes the picture is called as one in every block is."""
        return [path for path in super().adaptable(network) if path.startswith(BLOCKS)]

    def _channels(self) -> int:
        return self.transformer.config["in_channels"] // 4

    def _velocity(self, latents: Tensor, times: Tensor, conditioning: Rows) -> Tensor:
        height, width = latents.shape[-2:]
        prompt = conditioning["prompt"].to(self.dtype)
        embedded = self.guidance_kind == "embedded"
        tokens = self.transformer(
            hidden_states=pack(latents),
            timestep=times / 1000,
            guidance=torch.full_like(times, self.guidance) if embedded else None,
            pooled_projections=conditioning["pooled"].to(self.dtype),
            encoder_hidden_states=prompt,
            txt_ids=prompt.new_zeros(prompt.shape[1], 3),
            img_ids=self._place(height // 2, width // 2),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def _place(self, rows: int, columns: int) -> Tensor:
        """[rows * columns, 3]: 0, row and column of every patch."""
        if (rows, columns) not in self._places:
            places = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
            self._places[rows, columns] = places.to(self.device, torch.float32)
        return self._places[rows, columns]
