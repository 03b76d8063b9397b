"""Asking a person through a folder: pictures go in, a file of scores comes back, nobody waits for it.

round_0001/000.png, 001.png, ...   the pictures, in the order asked; a video is its frames side by side
round_0001/prompts.json            their prompts; written last, so that the pictures it counts are there
round_0001/scores.json             by the person: a list of numbers in that order, null for "not yet"
round_0001/ratings.csv             or this instead: lines of file,score
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlr_core.common.atomic import replacing
from rlr_core.common.pending import Pending
from rlr_core.errors import UserError

SAME = 1.0
"""Mean difference, in levels of 255, below which a picture is the one that was written before."""


class RatingFolder:
    """Writes the pictures of a round, and reads their scores when they are there."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).expanduser()

    def scores(self, number: int, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Scores of images [N, 3, H, W] or [N, F, 3, H, W], the latest N pictures of round `number`.

        prompts: of all the round's pictures so far, these included. Raises Pending, with the pictures
        written, while scores are missing; UserError for a file of scores that cannot be read, and for a
        round that was written by another run.
        """
        here = self.folder / f"round_{number:04d}"
        first, count = len(prompts) - len(images), len(prompts)
        for index, image in enumerate(images, first):
            _write_picture(here / picture_name(index), image)
        total = _write_prompts(here, prompts)
        scores = read_scores(here, total)
        missing = [index for index in range(count) if index not in scores]
        if missing:
            raise Pending(
                f"{len(missing)} of {count} pictures in {here} have no score yet: write "
                f"{here / 'scores.json'}, a list of {total} numbers in the order of the pictures (or "
                "ratings.csv, lines of file,score), and resume."
            )
        return [scores[index] for index in range(first, count)]


def picture_name(index: int) -> str:
    """File name of a round's picture."""
    return f"{index:03d}.png"


def read_scores(here: Path, total: int) -> dict[int, float]:
    """Scores of a round of `total` pictures by their places, from scores.json or else ratings.csv.

    Empty where there is neither. Raises UserError for a file that is not as it should be.
    """
    for name, read in (("scores.json", _from_json), ("ratings.csv", _from_csv)):
        if (here / name).is_file():
            return read(here / name, total)
    return {}


def _from_json(path: Path, total: int) -> dict[int, float]:
    wrong = UserError(f"{path} must be a list of {total} numbers, one per picture in their order.")
    try:
        numbers = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise wrong from error
    if not isinstance(numbers, list) or len(numbers) > total:
        raise wrong
    if not all(n is None or isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise wrong
    return {index: float(number) for index, number in enumerate(numbers) if number is not None}


def _from_csv(path: Path, total: int) -> dict[int, float]:
    places = {picture_name(index): index for index in range(total)}
    scores: dict[int, float] = {}
    try:
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8-sig"))))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is no table of lines file,score.") from error
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[0] not in places):  # a title line
            continue
        name, score = (cells + ["", ""])[:2]
        if name not in places or places[name] in scores:
            known = "comes twice" if name in places else f"is none of the round's {total} pictures"
            raise UserError(f"{path}, line {number}: {name!r} {known}.")
        if score:
            scores[places[name]] = _number(score, path, number)
    return scores


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, line {line}: {text!r} is no number.")
    return value


def _write_picture(path: Path, image: Tensor) -> None:
    """Write a picture as PNG; where it is there already, make sure that it is the same."""
    from PIL import Image

    from rlr_core.common.images import read_picture

    strip = torch.cat(list(image), -1) if image.ndim == 4 else image
    pixels = (strip.detach().float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu()
    if not path.is_file():
        with replacing(path) as temporary:
            Image.fromarray(pixels.numpy()).save(temporary, format="PNG")
        return
    before = read_picture(path).permute(1, 2, 0) * 255
    if before.shape != pixels.shape or (before - pixels).abs().mean() > SAME:
        raise _another_run(path)


def _write_prompts(here: Path, prompts: Sequence[str]) -> int:
    """Note the prompts of a round's pictures so far; the number of pictures that are written by now."""
    path, texts = here / "prompts.json", [str(prompt) for prompt in prompts]
    written: list[str] = []
    if path.is_file():
        try:
            written = list(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise _another_run(path) from error
    count = min(len(written), len(texts))
    if written[:count] != texts[:count]:
        raise _another_run(path)
    if len(written) < len(texts):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(texts, ensure_ascii=False), "utf-8")
    return max(len(written), len(texts))


def _another_run(path: Path) -> UserError:
    return UserError(
        f"{path} is not what this run asks about, so the ratings beside it are not its own; "
        "give an empty folder as folder=."
    )
