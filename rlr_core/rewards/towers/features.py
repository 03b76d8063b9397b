"""Pictures to feature vectors for a small head: a frozen CLIP's, or color and texture without weights."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.rewards.files import locate
from rlr_core.rewards.towers.clip import CLIP_L, ImageTower
from rlr_core.rewards.towers.clip_layout import read_clip
from rlr_core.rewards.towers.preprocess import crop_shorter_side, luminance

GRID = 4
SCALES = 3
TINY = 1e-8


class ClipFeatures:
    """CLIP embeddings of length 1, times the square root of their number, so that an entry is about 1."""

    def __init__(self, clip: str | os.PathLike):
        """clip: a file with a CLIP's image tower."""
        self.tower = ImageTower(read_clip(locate(CLIP_L, clip), CLIP_L), CLIP_L)
        self.width = self.tower.sizes.output_dim

    def __call__(self, images: Tensor) -> Tensor:
        """[B, width] of images [B, 3, H, W], or the mean over frames of [B, F, 3, H, W]; differentiable."""
        return over_frames(self._pictures, images)

    def _pictures(self, images: Tensor) -> Tensor:
        features = self.tower.features(crop_shorter_side(images, self.tower.size))
        return F.normalize(features, dim=-1) * self.width**0.5

    def to(self, device: torch.device | str) -> None:
        self.tower.to(device)


class SimpleFeatures:
    """Colors on a 4 x 4 grid, spread of each channel, and strength of detail at three scales."""

    width = 3 * GRID * GRID + 3 + SCALES

    def __call__(self, images: Tensor) -> Tensor:
        """[B, width] of images [B, 3, H, W], or the mean over frames of [B, F, 3, H, W]; differentiable."""
        return over_frames(self._pictures, images)

    def _pictures(self, images: Tensor) -> Tensor:
        images = images.float()
        colors = F.adaptive_avg_pool2d(images, GRID).flatten(1)
        spread = (images.var((-2, -1), correction=0) + TINY).sqrt()
        detail = []
        luma = luminance(images)[:, None]
        for _ in range(SCALES):
            energy = luma.diff(dim=-1).square().mean((1, 2, 3)) + luma.diff(dim=-2).square().mean((1, 2, 3))
            detail.append((energy + TINY).sqrt())
            if min(luma.shape[-2:]) >= 4:
                luma = F.avg_pool2d(luma, 2)
        return torch.cat([colors, spread, torch.stack(detail, 1)], 1)

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""


def over_frames(features, images: Tensor) -> Tensor:
    """features(images) for pictures, the mean over the frames for videos."""
    if images.ndim == 4:
        return features(images)
    return features(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
