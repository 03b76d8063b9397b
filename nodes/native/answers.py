"""The text encoder that is loaded anyway, where it is a Qwen3-VL, as the model of the reward `vlm`.

Krea 2, Qwen-Image 2.1, FLUX.3 and others come with one, vision tower and all. It is a black box here: ComfyUI
moves and casts its weights as it likes, and adds the picture's features in place.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.towers.vision_language import ANSWERS

NEEDED = ("preprocess_embed", "build_image_inputs", "logits", "visual")
"""What ComfyUI's Qwen3-VL has and a mere text encoder has not."""


class ClipAnswerer:
    """`rlr_core.rewards.towers.vision_language.Answerer` by a CLIP of ComfyUI."""

    differentiable = False

    def __init__(self, clip: Any):
        """Raises UserError for a CLIP that sees no pictures."""
        self.clip = clip
        whole = clip.cond_stage_model
        self.encoder = getattr(whole, str(getattr(whole, "clip", "")), None)
        self.network = getattr(self.encoder, "transformer", None)
        if not all(hasattr(self.network, name) for name in NEEDED):
            raise UserError(
                "This CLIP sees no pictures, so it cannot answer questions about them: load a Qwen3-VL text "
                "encoder, such as that of Krea 2."
            )
        tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip).tokenizer
        self.answers = {
            answer: sorted({ids[0] for ids in map(tokenizer.encode, words) if len(ids) == 1})
            for answer, words in ANSWERS.items()
        }

    def yes_no_logits(self, images: Tensor, questions: list[str]) -> Tensor:
        """log p(yes) - log p(no) [B] for a question to each of images [B, 3, H, W], on their device."""
        logits = [self._logit(image, question) for image, question in zip(images, questions, strict=True)]
        return torch.tensor(logits, device=images.device)

    @torch.inference_mode()
    def _logit(self, image: Tensor, question: str) -> float:
        pixels = image.detach().float().cpu().movedim(0, -1)[None]  # [1, H, W, 3], as an IMAGE
        # An empty thought is put in front of the answer, so that the answer comes first.
        tokens = self.clip.tokenize(question, image=pixels, thinking=False)
        device = self.clip.load_model(tokens).load_device
        rows = [[token[0] for token in row] for row in next(iter(tokens.values()))]
        dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
        with comfy.model_management.cuda_device_context(device):
            embeds, _, _, inserted = self.encoder.process_tokens(rows, device)
            positions, places, features = self.network.build_image_inputs(embeds, inserted)
            states = self.network.model.forward(
                None,
                embeds=embeds.to(dtype),
                position_ids=positions,
                visual_pos_masks=places,
                deepstack_embeds=features,
            )[0]
            logits = self.network.logits(states)[0, -1].float()
        yes, no = (logits[self.answers[answer]].logsumexp(0) for answer in ("yes", "no"))
        return (yes - no).item()
