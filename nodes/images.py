"""Pictures between ComfyUI's IMAGE [N, H, W, 3] and the engine's [N, 3, H, W], files and previews."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlr_core.common.atomic import replacing


def to_engine(image: Tensor) -> Tensor:
    """[N, 3, H, W] float32 in [0, 1] from an IMAGE, free of inference mode and of an alpha channel."""
    with torch.inference_mode(False):
        return image.detach().clone()[..., :3].movedim(-1, 1).float().clamp(0, 1).contiguous()


def to_comfy(images: Tensor) -> Tensor:
    """An IMAGE from [N, 3, H, W]; of videos [N, F, 3, H, W] one frame after the other."""
    if images.ndim == 5:
        images = images.flatten(0, 1)
    return images.detach().float().clamp(0, 1).movedim(1, -1).cpu().contiguous()


def read(path: Path) -> Tensor:
    """A picture file as an IMAGE of one."""
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None]


def read_animation(path: Path) -> Tensor:
    """The frames of an animated file as an IMAGE of as many."""
    from PIL import Image, ImageSequence

    with Image.open(path) as animation:
        frames = [
            np.asarray(frame.convert("RGB"), dtype=np.float32) / 255
            for frame in ImageSequence.Iterator(animation)
        ]
    return torch.from_numpy(np.stack(frames))


def blank() -> Tensor:
    """An IMAGE to send where there is no picture."""
    return torch.ones(1, 64, 64, 3)


def keep_as_file(image: Tensor, folder: Path) -> Path:
    """Write [H, W, 3] as a PNG named after its content; the same picture is written once."""
    from PIL import Image

    pixels = (image[..., :3].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    name = hashlib.sha256(pixels.tobytes() + str(pixels.shape).encode()).hexdigest()[:16]
    path = folder / f"{name}.png"
    if not path.is_file():
        with replacing(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
    return path


def thumbnail(path: Path, side: int = 256) -> str:
    """A picture file as a small JPEG in a data: address; of an animation beside it a small animated WebP."""
    from PIL import Image

    animation = path.with_suffix(".webp")
    if animation.is_file():
        return "data:image/webp;base64," + base64.b64encode(_small_animation(animation, side)).decode()
    with Image.open(path) as picture:
        return _small(picture.convert("RGB"), side)


def thumbnail_of(image: Tensor, side: int = 176) -> str:
    """One picture [H, W, 3] of an IMAGE as a small JPEG in a data: address."""
    return _small(_to_pil(image), side)


def _small(picture: Any, side: int) -> str:
    picture.thumbnail((side, side))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _to_pil(image: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((image[..., :3].float().clamp(0, 1) * 255).round().byte().cpu().numpy())


def _small_animation(path: Path, side: int) -> bytes:
    from PIL import Image, ImageSequence

    with Image.open(path) as animation:
        duration, frames = animation.info.get("duration", 125), []
        for frame in ImageSequence.Iterator(animation):
            small = frame.convert("RGB")
            small.thumbnail((side, side))
            frames.append(small)
    data = io.BytesIO()
    frames[0].save(
        data, "WEBP", save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=70
    )
    return data.getvalue()


def preview(samples: Path | None, points: Iterable[tuple[float, float]], title: str, width: int = 512) -> Any:
    """A PIL picture for clients without our JavaScript: samples above the curve of the reward.

    samples: a picture file, or None; points: (step, reward).
    """
    from PIL import Image, ImageDraw

    height = 150
    top = None
    if samples is not None and samples.is_file():
        with Image.open(samples) as picture:
            top = picture.convert("RGB")
        top = top.resize((width, max(1, round(top.height * width / top.width))))
    offset = 0 if top is None else top.height
    sheet = Image.new("RGB", (width, offset + height), "#1b1b1f")
    if top is not None:
        sheet.paste(top, (0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((10, offset + 6), title, fill="#dddddd")
    points = [(float(x), float(y)) for x, y in points]
    if len(points) > 1:
        xs, ys = zip(*points, strict=True)
        low, high = min(ys), max(ys)
        spread = (high - low) or 1.0
        across = (xs[-1] - xs[0]) or 1.0
        left, right, up, down = 10, width - 60, offset + 28, offset + height - 12
        places = [
            (left + (x - xs[0]) / across * (right - left), down - (y - low) / spread * (down - up))
            for x, y in points
        ]
        draw.line(places, fill="#58a6ff", width=2)
        draw.text((right + 6, up - 6), f"{high:.3g}", fill="#aaaaaa")
        draw.text((right + 6, down - 6), f"{low:.3g}", fill="#aaaaaa")
    return sheet
