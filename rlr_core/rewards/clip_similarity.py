"""How well a picture fits its prompt, by the angle of CLIP's two embeddings: CLIPScore, PickScore, HPSv2."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import WeightFile, locate
from rlr_core.rewards.towers.clip import ImageTower, PromptFeatures, text_tower
from rlr_core.rewards.towers.clip_layout import read_clip
from rlr_core.rewards.towers.preprocess import crop_shorter_side, pad_longer_side


class ClipSimilarity(Reward):
    """scale * cos(image, prompt), from one CLIP file with both towers.

    Prompts are embedded once, in float32, and the text tower is dropped; the image tower runs in `dtype`,
    the cosine in float32.
    """

    needs_prompt = True
    quick_gelu: bool | None = None

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        dtype: str | torch.dtype | None = None,
        checkpointing: bool = False,
    ):
        """weights: the CLIP file; dtype, checkpointing: see ImageTower. Raises UserError for a bad file."""
        needed = self.files[0]
        clip = read_clip(locate(needed, weights), needed, self.quick_gelu)
        text_tower(clip, needed)  # says now, not after the first rollout, if the file has none
        self.tower = ImageTower(clip, needed, dtype, checkpointing)
        self.prompts = PromptFeatures(clip.path, needed, self.quick_gelu)
        self.scale = self._scale(clip.logit_scale)

    def _scale(self, logit_scale: Tensor | None) -> float:
        """What the cosine is multiplied by."""
        return 1.0

    def preprocess(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] as the tower takes them, [B, 3, S, S]."""
        return crop_shorter_side(images, self.tower.size)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        features = F.normalize(self.tower.features(self.preprocess(images)), dim=-1)
        return self.scale * (features * self.prompts.embed(prompts, features.device)).sum(-1)

    def to(self, device: torch.device | str) -> ClipSimilarity:
        self.tower.to(device)
        return self

    def prepare(self, prompts: Sequence[str]) -> None:
        self.prompts.embed(prompts, self.tower.device or "cpu")


class ClipScore(ClipSimilarity):
    """2.5 cos(image, prompt) with any CLIP: CLIPScore (Hessel et al. 2021, arXiv 2104.08718, section 3).

    The paper cuts negative cosines off at 0; here they stay negative, so that a picture far from its prompt
    still has a gradient. Above 0 the two are equal.
    """

    name = "clip_score"
    range = (0.25, 1.0)
    files = (
        WeightFile(
            "weights",
            ("clip-vit-large-patch14.safetensors", "clip-vit-large-patch14", "ViT-L-14.safetensors"),
            "a CLIP with both towers, such as OpenAI's ViT-L/14",
            "https://huggingface.co/openai/clip-vit-large-patch14 (model.safetensors, renamed)",
        ),
    )

    def _scale(self, logit_scale: Tensor | None) -> float:
        return 2.5


class PickScore(ClipSimilarity):
    """exp(logit_scale) cos(image, prompt), ViT-H/14 (Kirstain et al. 2023, arXiv 2305.01569)."""

    name = "pickscore"
    range = (15.0, 26.0)
    quick_gelu = False
    files = (
        WeightFile(
            "weights",
            ("PickScore_v1.safetensors", "PickScore_v1", "pickscore_v1.safetensors"),
            "PickScore v1 (ViT-H/14, both towers)",
            "https://huggingface.co/yuvalkirstain/PickScore_v1 (model.safetensors, renamed)",
        ),
    )

    def _scale(self, logit_scale: Tensor | None) -> float:
        if logit_scale is None:
            raise UserError(f"{self.prompts.path} has no logit_scale. {self.files[0].advice()}")
        return logit_scale.float().exp().item()

    def preprocess(self, images: Tensor) -> Tensor:
        return crop_shorter_side(images, self.tower.size, offset="floor")


class HPSv2(ClipSimilarity):
    """cos(image, prompt), ViT-H/14: the Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341).

    The longer side is fitted to 224 and the rest is black, as in the release; nothing is cut off.
    """

    name = "hpsv2"
    range = (0.15, 0.4)
    quick_gelu = False
    files = (
        WeightFile(
            "weights",
            ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"),
            "HPSv2.1 or 2.0 (ViT-H/14, both towers)",
            "https://huggingface.co/xswu/HPSv2 (HPS_v2.1_compressed.pt or HPS_v2_compressed.pt)",
        ),
    )

    def preprocess(self, images: Tensor) -> Tensor:
        return pad_longer_side(images, self.tower.size)
