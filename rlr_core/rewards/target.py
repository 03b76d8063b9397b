"""Rewards for looking like a given color or picture: in pixels, or in the features of a frozen tower."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.common.images import read_picture
from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.towers.preprocess import crop_shorter_side, resize

FEATURE_LAYERS = 4


class TargetColor(Reward):
    """Minus the mean squared distance of the pixels to one color, in [-1, 0]."""

    name = "target_color"
    range = (-1.0, 0.0)

    def __init__(self, color: str | Sequence[float] = "#ff8000"):
        """color: "#rrggbb", a name that PIL knows, or three numbers in [0, 1]."""
        self.color = torch.tensor(parse_color(color))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        color = self.color.to(images.device)[:, None, None]
        return -(images.float() - color).square().mean((1, 2, 3))


class TargetPicture(Reward):
    """Minus the distance to a picture, 0 at the picture itself.

    Pixels: mean squared distance, in [-1, 0]. Features, when an image tower is given: as LPIPS (arXiv
    1801.03924) without its learned weights, the mean over patches and over four layers of the squared
    distance between patch features of length 1, in [-4, 0]. The target is fitted as the pictures are.
    """

    name = "target_picture"
    range = (-1.0, 0.0)

    def __init__(
        self, target: str | os.PathLike | Tensor, features: Reward | str | os.PathLike | None = None
    ):
        """target: an image file or pixels [3, H, W] in [0, 1].

        features: None compares pixels; a reward that is loaded already lends its image tower (any of the CLIP
        rewards, or ImageReward's timm ViT); a path loads a CLIP file's image tower.
        """
        self.target = read_picture(target)
        self.tower: Any = None if features is None else _tower(features)
        self._reference: Tensor | None = None  # the target's features, once computed

    def to(self, device: torch.device | str) -> TargetPicture:
        self.target, self._reference = self.target.to(device), None
        if self.tower is not None:
            self.tower.to(device)
        return self

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.tower is not None:
            return (
                -(self._features(images) - self._target_features(images.device)).square().sum(-1).mean((1, 2))
            )
        height, width = images.shape[-2:]
        target = _cover(self.target.to(images.device)[None], height, width)
        return -(images.float() - target).square().mean((1, 2, 3))

    def _features(self, images: Tensor) -> Tensor:
        """Patch features of length 1, [B, layers, N, width]."""
        last = self.tower.depth - 1
        layers = sorted({round(last * (i + 1) / FEATURE_LAYERS) for i in range(FEATURE_LAYERS)})
        tokens = self.tower.tokens(crop_shorter_side(images, self.tower.size), layers)
        return F.normalize(tokens, dim=-1)

    def _target_features(self, device: torch.device) -> Tensor:
        if self._reference is None:
            with torch.inference_mode(False), torch.no_grad():
                self._reference = self._features(self.target.clone()[None].to(device))
        return self._reference


def parse_color(color: str | Sequence[float]) -> tuple[float, float, float]:
    """Three numbers in [0, 1] from "#rrggbb", a color's name, or three numbers. Raises UserError."""
    from PIL import ImageColor

    if isinstance(color, str):
        try:
            red, green, blue = ImageColor.getrgb(color)[:3]
        except ValueError as error:
            raise UserError(f"{color!r} is not a color; use a name such as 'teal', or '#rrggbb'.") from error
        return red / 255, green / 255, blue / 255
    values = tuple(float(value) for value in color)
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise UserError(f"A color is three numbers in [0, 1], not {list(values)}.")
    return values[0], values[1], values[2]


def _cover(images: Tensor, height: int, width: int) -> Tensor:
    """Images [B, 3, H, W] scaled to cover height x width, centered, the rest cut off."""
    scale = max(height / images.shape[-2], width / images.shape[-1])
    tall, wide = (
        max(need, round(side * scale)) for need, side in zip((height, width), images.shape[-2:], strict=True)
    )
    images = resize(images, tall, wide)
    top, left = (tall - height) // 2, (wide - width) // 2
    return images[..., top : top + height, left : left + width]


def _tower(features: Reward | str | os.PathLike):
    """The image tower that a loaded reward lends, or that of a CLIP file."""
    from rlr_core.rewards.files import locate
    from rlr_core.rewards.towers.clip import CLIP_L, ImageTower
    from rlr_core.rewards.towers.clip_layout import read_clip

    if isinstance(features, Reward):
        tower = getattr(features, "tower", None)
        if tower is None:
            raise UserError(
                f"Reward {features.name!r} has no image tower to lend; give a CLIP file as features=."
            )
        return tower
    needed = CLIP_L._replace(option="features", what="a CLIP with an image tower")
    return ImageTower(read_clip(locate(needed, features), needed), needed)
