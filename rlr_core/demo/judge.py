"""A judge that looks: does the picture show what its prompt says? It reads pixels; it has no weights to fool.

Shapes are the connected regions that differ from the background. Each gets the color most of its inner
pixels have and the kind whose drawing, of the same area and center, covers it best; relations are read off
the centers. A picture is right (1.0) only if it shows exactly the shapes of its prompt, well formed, in its
relation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.rewards.base import Reward

from .scenes import COLORS, KINDS, OFFSETS, SIZE, Scene, Thing, coverage, parse

FOREGROUND = 0.22  # how far a pixel's color is from the background's to belong to a shape
SPECK = 16  # regions of fewer pixels are dust, and are not counted
SHAPE_FIT = 0.80  # least overlap (intersection over union) of a shape with the drawing of its kind
COLOR_FIT = 0.30  # greatest distance of a shape's mean color from the color it is called
COLOR_AGREES = 0.80  # least part of a shape's inner pixels that have its color


@dataclass(frozen=True)
class Seen:
    """A shape found in a picture, its center in pixels; `thing` is None where it is no shape or color of the
    world."""

    thing: Thing | None
    x: float
    y: float


class DemoJudge(Reward):
    """`judge(images, prompts)`: 1.0 where the picture shows what its prompt says, otherwise 0.0."""

    name = "judge"
    differentiable = False
    needs_prompt = True
    range = (0.0, 1.0)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images [B, 3, H, W] in [0, 1] (resized to 64 x 64), prompts: B captions -> [B] of 0.0 and 1.0.

        Raises UserError where a prompt is no caption of the demo's world."""
        scenes = [parse(prompt) for prompt in prompts]
        verdicts = [shows(shapes, scene) for shapes, scene in zip(look(images), scenes, strict=True)]
        return torch.tensor(verdicts, dtype=torch.float32, device=images.device)


def shows(shapes: list[Seen], scene: Scene) -> bool:
    """Whether what was seen is exactly the scene."""
    if scene.second is None or scene.relation is None:
        return len(shapes) == 1 and shapes[0].thing == scene.first
    if len(shapes) != 2:
        return False
    dx, dy = OFFSETS[scene.relation]
    for first, second in (shapes, shapes[::-1]):
        along = (first.x - second.x) * dx + (first.y - second.y) * dy
        across = abs(first.x - second.x) * abs(dy) + abs(first.y - second.y) * abs(dx)
        if (first.thing, second.thing) == (scene.first, scene.second) and along > across:
            return True
    return False


@torch.no_grad()
def look(images: Tensor) -> list[list[Seen]]:
    """The shapes in each of the pictures [B, 3, H, W] in [0, 1], at most three (a third only counts; it is
    not named)."""
    images = images.detach().float().cpu()
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    background = (
        torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], 2)
        .median(2)
        .values
    )
    away = (images - background[..., None, None]).square().sum(1).sqrt()
    regions = connected_regions(away > FOREGROUND)  # [B, 64, 64]

    sizes = torch.zeros(len(images), SIZE * SIZE + 1).scatter_add_(
        1, regions.flatten(1), torch.ones_like(away).flatten(1)
    )
    sizes[:, 0] = 0
    sizes, labels = sizes.topk(3, dim=1)
    area, label, more = sizes[:, :2], labels[:, :2], sizes[:, 2] >= SPECK
    masks = (regions[:, None] == label[..., None, None]) & (area > 0)[..., None, None]  # [B, 2, 64, 64]

    axis = torch.arange(SIZE) + 0.5
    weight = masks / area.clamp(min=1)[..., None, None]
    x = (weight * axis).sum((2, 3))
    y = (weight * axis[:, None]).sum((2, 3))
    color, color_good = _colors(images, masks)
    kind, kind_good = _kinds(masks, area, x, y)

    names = list(COLORS)
    pictures = []
    for b in range(len(images)):
        shapes = [Seen(None, math.nan, math.nan)] if more[b] else []
        for i in range(2):
            if area[b, i] >= SPECK:
                good = color_good[b, i] and kind_good[b, i]
                thing = Thing(names[color[b, i]], KINDS[kind[b, i]]) if good else None
                shapes.append(Seen(thing, float(x[b, i]), float(y[b, i])))
        pictures.append(shapes)
    return pictures


def connected_regions(mask: Tensor) -> Tensor:
    """Labels of the 4-connected regions of mask [B, H, W] bool: int64, one positive number per region, 0
    outside."""
    height, width = mask.shape[-2:]
    labels = mask * torch.arange(1, height * width + 1).view(1, height, width)
    while True:
        # The greatest label of each run of inside pixels spreads over the run, in rows, then in columns.
        spread = labels
        for dim in (2, 1):
            spread = torch.maximum(
                _run_maximum(spread, mask, dim), _run_maximum(spread, mask, dim, backward=True)
            )
        if torch.equal(spread, labels):
            return labels
        labels = spread


def _run_maximum(labels: Tensor, mask: Tensor, dim: int, backward: bool = False) -> Tensor:
    """The maximum so far within each unbroken run of mask along dim; 0 outside."""
    if backward:
        return _run_maximum(labels.flip(dim), mask.flip(dim), dim).flip(dim)
    runs = (~mask).long().cumsum(dim) * (
        labels.shape[1] * labels.shape[2] + 1
    )  # a later run outweighs all before
    return ((runs + labels).cummax(dim).values - runs) * mask


def _colors(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The color [B, K] (an index) of the inner pixels of each of K regions, and whether it is one of the
    world's."""
    inner = _eroded(_eroded(masks)).flatten(2).float()  # [B, K, 4096]
    count = inner.sum(2).clamp(min=1)
    palette = torch.tensor(list(COLORS.values()))
    pixels = images.flatten(2)  # [B, 3, 4096]
    nearest = (palette @ pixels - palette.square().sum(1)[:, None] / 2).argmax(1)  # [B, 4096]
    mean = inner @ pixels.transpose(1, 2) / count[..., None]  # [B, K, 3]
    distance, color = (mean[:, :, None] - palette).square().sum(3).sqrt().min(2)
    agrees = (inner * (nearest[:, None] == color[..., None])).sum(2) / count
    return color, (distance < COLOR_FIT) & (agrees > COLOR_AGREES)


def _eroded(masks: Tensor) -> Tensor:
    """The masks without the pixels that touch the outside."""
    inner = masks.clone()
    inner[..., 1:, :] &= masks[..., :-1, :]
    inner[..., :-1, :] &= masks[..., 1:, :]
    inner[..., 1:] &= masks[..., :-1]
    inner[..., :-1] &= masks[..., 1:]
    return inner


def _kinds(masks: Tensor, area: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The kind [B, K] (an index) whose drawing, of the same area and center, overlaps each region most, and
    whether it overlaps well."""
    # the radius with which each kind has this area, and how far its center of mass is below its center
    radius = torch.stack([(area / unit).sqrt() for unit in (math.pi, 1.8**2, 1.05 * 1.9)])  # [3, B, K]
    below = radius * torch.tensor([0.0, 0.0, 0.85 - 1.9 / 3])[:, None, None]
    fits = []
    for kind in range(len(KINDS)):
        center = torch.stack([x, y - below[kind]], 2).flatten(0, 1)
        kinds = torch.full((area.numel(),), kind)
        drawing = coverage(kinds, center, radius[kind].flatten()).view(masks.shape)
        overlap = torch.minimum(drawing, masks.float()).sum((2, 3))
        union = torch.maximum(drawing, masks.float()).sum((2, 3)).clamp(min=1)
        fits.append(overlap / union)
    fit, best = torch.stack(fits).max(0)
    return best, fit > SHAPE_FIT
