"""Folders of pictures with captions, and pictures sampled from corrected noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.common.images import read_picture
from rlr_core.correction.corrector import Corrector
from rlr_core.correction.inversion import Inversion, invert
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class Captioned(NamedTuple):
    """Real pictures and what they show."""

    pictures: Tensor
    """[N, 3, H, W] in [0, 1]."""
    captions: list[str]
    """[N]."""


def read_pictures(folder: str | Path, height: int, width: int) -> Captioned:
    """Every picture in a folder, in the order of their names, with the caption in the .txt file of the same
    name, or '' without one. Resized to cover [height, width] and cropped to its middle.

    Raises UserError where there are none, or where one cannot be read.
    """
    folder = Path(folder).expanduser()
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"There are no pictures ({', '.join(ENDINGS)}) in {str(folder)!r}: name their folder."
        )
    pictures = [_covered(read_picture(file), height, width) for file in files]
    notes = [file.with_suffix(".txt") for file in files]
    captions = [note.read_text(encoding="utf-8").strip() if note.is_file() else "" for note in notes]
    return Captioned(torch.stack(pictures), captions)


def _covered(picture: Tensor, height: int, width: int) -> Tensor:
    """[3, height, width]: resized so that it covers that size, its middle."""
    if picture.shape[-2:] != (height, width):
        factor = max(height / picture.shape[-2], width / picture.shape[-1])
        size = [max(height, round(factor * picture.shape[-2])), max(width, round(factor * picture.shape[-1]))]
        picture = F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = (picture.shape[-2] - height) // 2, (picture.shape[-1] - width) // 2
    return picture[:, top : top + height, left : left + width]


def invert_pictures(
    chain: Chain, book: PromptBook, pictures: Tensor, batch: int, on_progress=lambda done, total: None
) -> Inversion:
    """The noise behind pictures [N, 3, H, W]; picture i goes with the book's prompt i."""
    parts = []
    for place in torch.arange(len(pictures)).split(batch):
        latents = chain.model.encode(pictures[place])
        parts.append(invert(chain, latents, book.conditioning(place)))
        on_progress(int(place[-1]) + 1, len(pictures))
    return Inversion(torch.cat([part.noise for part in parts]), torch.cat([part.residual for part in parts]))


@torch.no_grad()
def sample_corrected(
    chain: Chain,
    book: PromptBook,
    places: Sequence[int],
    seeds: Sequence[int],
    shape: Sequence[int],
    batch: int,
    corrector: Corrector | None = None,
) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] on the CPU: of the book's prompts at `places`, from the noise of
    `seeds`, corrected where there is a corrector. shape: of one latent."""
    pictures = []
    for index in torch.arange(len(places)).split(batch):
        noise = Noise([seeds[i] for i in index.tolist()], shape, chain.model.device)
        start = noise.initial()
        if corrector is not None:
            start = corrector.correct(start)
        conditioning = book.conditioning([places[i] for i in index.tolist()])
        final = rollout(chain, noise, conditioning, start=chain.T, latents=start, keep=False).final
        pictures.append(chain.model.decode(final).clamp(0, 1).cpu())
    return torch.cat(pictures)
