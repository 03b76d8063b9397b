"""From pictures of any size to what a network expects, differentiable in the pixels; nothing is squashed.

Each function keeps the aspect ratio the way the named reference does. Sizes and offsets follow the reference
to the pixel; the resize is torch's antialiased one, within 2/255 (mean) of PIL, which rounds to 8 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resize of images [B, 3, H, W], in float32, values in [0, 1].

    As PIL: across, cut to [0, 1], down, cut to [0, 1]. The gradient ignores the cuts, so that an overshooting
    pixel still has one.
    """
    images = images.float()
    for size in ((images.shape[-2], width), (height, width)):
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
            images = images + (images.clamp(0, 1) - images).detach()
    return images


def crop_shorter_side(images: Tensor, size: int, offset: str = "round") -> Tensor:
    """Shorter side to `size`, then the center square [B, 3, size, size], as CLIP's own preprocessing.

    offset: where the square begins when an odd number of pixels is left over: round (torchvision's
    CenterCrop: OpenAI's CLIP, open_clip, ImageReward) or floor (transformers' CLIPImageProcessor: PickScore).
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    height, width = (size if side == short else int(size * side / short) for side in (height, width))
    images = resize(images, height, width)
    place = {"round": lambda spare: int(round(spare / 2)), "floor": lambda spare: spare // 2}[offset]
    top, left = place(height - size), place(width - size)
    return images[..., top : top + size, left : left + size]


def pad_longer_side(images: Tensor, size: int) -> Tensor:
    """Longer side to `size`, then black bars to [B, 3, size, size], as HPSv2's ResizeMaxSize."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    height, width = (max(1, round(side * scale)) for side in (height, width))
    images = resize(images, height, width)
    spare_x, spare_y = size - width, size - height
    return F.pad(images, (spare_x // 2, spare_x - spare_x // 2, spare_y // 2, spare_y - spare_y // 2))


def pad_square(images: Tensor, size: int) -> Tensor:
    """Bars of CLIP's mean color (in 8 bits) to a square, then resized to `size`, as LLaVA and VQAScore."""
    height, width = images.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    if height != width:
        color = torch.tensor([int(255 * mean) / 255 for mean in CLIP_MEAN])
        canvas = (
            color.to(images.device, torch.float32)[:, None, None].expand(len(images), 3, side, side).clone()
        )
        canvas[..., top : top + height, left : left + width] = images.float()
        images = canvas
    return resize(images, size, size)


def normalize(images: Tensor, mean=CLIP_MEAN, std=CLIP_STD) -> Tensor:
    """(images - mean) / std per channel, float32."""
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (mean, std))
    return (images.float() - mean) / std


def luminance(images: Tensor) -> Tensor:
    """Luma [..., H, W] in [0, 1] of images [..., 3, H, W]."""
    weights = torch.tensor(LUMA, device=images.device)[:, None, None]
    return (images.float() * weights).sum(-3)
