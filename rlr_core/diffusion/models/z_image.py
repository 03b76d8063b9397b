"""Z-Image and Z-Image-Turbo: a diffusers folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.flow_transformer import FlowTransformer

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
MODULATION = ("adaLN_modulation.0",)
LONG = 256  # tokens of a long prompt; 512 are the most


class ZImage(FlowTransformer):
    """A transformer on latents [B, 16, H/8, W/8], told the prompt by a language model.

    Its pipeline counts guidance from 0; here, as everywhere, 1 is none. The turbo, which only the name of its
    folder tells, takes none.
    """

    family = "z-image"
    pipeline = "ZImagePipeline"
    transformer_class = "ZImageTransformer2DModel"
    text_encoders = {"text_encoder": ("Qwen3ForCausalLM", "Qwen3Model")}
    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD + MODULATION,
    }

    def __init__(self, **parts: Any):
        super().__init__(**parts)
        self.guidance_kind = "none" if "turbo" in self.name.lower() else "cfg"

    def _encode(self, pipeline: Any, prompts: list[str]) -> Rows:
        """{'prompt': [N, L, D], 'mask': [N, L]}."""
        rows, _ = pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        mask = pad_sequence([torch.ones(len(row), device=row.device) for row in rows], batch_first=True)
        return {"prompt": pad_sequence(rows, batch_first=True), "mask": mask.bool()}

    def _prompt_sizes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (LONG, self.transformer.config["cap_feat_dim"]), "mask": (LONG,)}

    def _velocity(self, latents: Tensor, times: Tensor, conditioning: Rows) -> Tensor:
        lengths = conditioning["mask"].sum(1).tolist()
        prompts = [row[:n] for row, n in zip(conditioning["prompt"].to(self.dtype), lengths, strict=True)]
        pictures = list(latents[:, :, None].unbind())  # each [C, 1, h, w]
        output = self.transformer(pictures, (1000 - times) / 1000, prompts, return_dict=False)[0]
        return -torch.stack(list(output))[:, :, 0]
