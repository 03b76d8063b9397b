"""Pictures: tensors to PIL and back, grids, animations."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from rlr_core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

TILE = 128  # pixels a side, at least, of a picture in a grid


def grid(images: Tensor, columns: int | None = None, gap: int = 4) -> Image:
    """Pictures [N, 3, H, W] (or [N, F, 3, H, W]) in [0, 1] side by side on white; tiny ones are enlarged."""
    from PIL import Image

    tiles = [enlarged(to_pil(image)) for image in images]
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    width, height = tiles[0].size
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def grid_frames(videos: Tensor, columns: int | None = None) -> list[Image]:
    """Videos [N, F, 3, H, W] side by side: F grids."""
    return [grid(frame, columns) for frame in videos.unbind(1)]


def save_animation(frames: list[Image], path: str | os.PathLike, frames_per_second: float = 8.0) -> None:
    """Pictures of one size as an animated WebP that plays again and again."""
    first, *others = frames
    duration = round(1000 / frames_per_second)
    first.save(
        path, format="WEBP", save_all=True, append_images=others, duration=duration, loop=0, quality=85
    )


def enlarged(picture: Image, least: int = TILE) -> Image:
    """A picture of fewer than `least` pixels a side, every pixel repeated; a larger one as it is."""
    factor = math.ceil(least / max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), resample=0)


def to_pil(image: Any) -> Image:
    """A PIL image as it is, or from a tensor [3, H, W] in [0, 1]; the middle frame of [F, 3, H, W]."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if image.ndim == 4:
        image = image[len(image) // 2]
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def read_picture(picture: str | os.PathLike | Tensor) -> Tensor:
    """Pixels [3, H, W], float32 in [0, 1], of an image file or a tensor. Raises UserError."""
    import numpy
    import torch
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, torch.Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise UserError(f"A picture is a tensor [3, H, W] in [0, 1], not {list(picture.shape)}.")
        return picture.detach().float().clone()
    try:
        with Image.open(picture) as image:
            pixels = numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{picture} is not an image that can be read ({error}).") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
