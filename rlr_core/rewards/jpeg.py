"""The size of a picture as a JPEG file: exact as a black box, a DCT proxy with a gradient as its surrogate.

DDPO's two rewards (Black et al. 2023, arXiv 2305.13301), which score a picture by its file's kilobytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward

# JPEG's example quantization tables, ITU-T T.81 annex K.1, which libjpeg scales by the quality.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCBCR = (  # JFIF
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)
HUFFMAN = 2.5
"""Bits in the file for each bit of a level's magnitude: measured 2.5 at quality 95, 2.9 at quality 50."""


class _JpegSize(Reward):
    """sign * kilobytes of the picture as a JPEG; a black box whose surrogate is `JpegProxy`."""

    differentiable = False
    sign = 1.0

    def __init__(self, quality: int = 95):
        """quality: libjpeg's, 1 to 100; the field uses 95."""
        if not 1 <= quality <= 100:
            raise UserError(f"Reward {self.name!r}: quality must be in 1..100, not {quality}.")
        self.quality = quality
        self.surrogate = JpegProxy(quality, self.sign)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        sizes = [jpeg_bytes(image, self.quality) / 1000 for image in images.detach()]
        return self.sign * torch.tensor(sizes, device=images.device)


class Incompressibility(_JpegSize):
    """Kilobytes (1000 bytes) of the picture as a JPEG."""

    name = "jpeg_incompressibility"
    range = (0.0, 200.0)


class Compressibility(_JpegSize):
    """Minus the kilobytes (1000 bytes) of the picture as a JPEG."""

    name = "jpeg_compressibility"
    range = (-200.0, 0.0)
    sign = -1.0


class JpegProxy(Reward):
    """sign * an estimate of the JPEG's kilobytes, differentiable: 2.5 bits * sum of log2(1 + |c| / q).

    c are the 8x8 DCT coefficients of the three YCbCr planes (color planes halved, as in a JPEG), q the
    quantization steps at that quality. Pictures whose sides are no multiple of 16 are extended at the border.
    """

    name = "jpeg_proxy"

    def __init__(self, quality: int = 95, sign: float = 1.0):
        self.sign = sign
        self.steps = [quantization(LUMA_TABLE, quality), *[quantization(CHROMA_TABLE, quality)] * 2]

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images.float(), (0, -width % 16, 0, -height % 16), mode="replicate")
        matrix = torch.tensor(TO_YCBCR, device=images.device)
        planes = torch.einsum("ij,bjhw->bihw", matrix, images * 255).split(1, dim=1)
        bits = torch.zeros(len(images), device=images.device)
        for index, (plane, steps) in enumerate(zip(planes, self.steps, strict=True)):
            if index:
                plane = F.avg_pool2d(plane, 2)
            levels = dct_blocks(plane.squeeze(1)).abs() / steps.to(images.device)
            bits = bits + torch.log2(1 + levels).sum((1, 2, 3, 4))
        return self.sign * HUFFMAN * bits / 8000


def jpeg_bytes(image: Tensor, quality: int) -> int:
    """Bytes of one picture [3, H, W] in [0, 1], rounded to 8 bits, as a JPEG with 4:2:0 color."""
    from PIL import Image

    pixels = (image.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return file.tell()


def quantization(table: Sequence[Sequence[int]], quality: int) -> Tensor:
    """Quantization steps [8, 8] at libjpeg's quality 1..100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255).float()


def dct_blocks(plane: Tensor) -> Tensor:
    """Orthonormal DCT-II of the 8x8 blocks of planes [B, H, W]: [B, H/8, W/8, 8, 8]."""
    k = torch.arange(8, device=plane.device, dtype=torch.float32)
    basis = torch.cos(torch.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    basis[0] /= 2**0.5
    blocks = plane.unfold(1, 8, 8).unfold(2, 8, 8)
    return basis @ blocks @ basis.T
