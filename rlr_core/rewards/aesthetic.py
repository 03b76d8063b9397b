"""LAION's aesthetic predictor v2: how much people like a picture, about 1 to 10, from its CLIP embedding."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import WeightFile, locate, read_tensors
from rlr_core.rewards.towers.clip import CLIP_L, ImageTower
from rlr_core.rewards.towers.clip_layout import read_clip
from rlr_core.rewards.towers.preprocess import crop_shorter_side
from rlr_core.rewards.towers.score_head import score_head

HEAD = WeightFile(
    "weights",
    ("sac+logos+ava1-l14-linearMSE.pth",),
    "the aesthetic v2 head (five linear layers on 768 CLIP features)",
    "https://github.com/christophschuhmann/improved-aesthetic-predictor (sac+logos+ava1-l14-linearMSE.pth)",
)


class Aesthetic(Reward):
    """head(e / |e|), e the picture's OpenAI ViT-L/14 embedding; a video gets the mean over its frames.

    Head: Linear 768-1024-128-64-16-1 without activations, in float32 (dropout between them in training only).
    """

    name = "aesthetic"
    range = (3.0, 8.0)
    files = (HEAD, CLIP_L)

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        clip: str | os.PathLike | None = None,
        dtype: str | torch.dtype | None = None,
        checkpointing: bool = False,
    ):
        """weights: the head's file; clip: the CLIP file; dtype, checkpointing: see ImageTower."""
        path = locate(HEAD, weights)
        self.head = score_head(read_tensors(path, HEAD), path, HEAD)
        clip_file = read_clip(locate(CLIP_L, clip), CLIP_L, quick_gelu=True)
        self.tower = ImageTower(clip_file, CLIP_L, dtype, checkpointing)
        features = self.tower.sizes.output_dim
        if features != self.head[0].in_features:
            raise UserError(
                f"{clip_file.path} gives {features} features and {path.name} takes "
                f"{self.head[0].in_features}; expected {CLIP_L.what}. {CLIP_L.advice()}"
            )

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.tower.device is None:
            self.to(images.device)
        features = self.tower.features(crop_shorter_side(images, self.tower.size))
        return self.head(F.normalize(features, dim=-1)).squeeze(-1)

    def to(self, device: torch.device | str) -> Aesthetic:
        self.tower.to(device)
        with torch.inference_mode(False):
            self.head.to(device)
        return self
