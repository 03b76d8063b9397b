"""Preferences as they are collected: pairs of pictures in a folder, chosen from one by one, until they become
a file of preferences for dpo.

0f3a..._left.png, 0f3a..._right.png     the pictures of a pair, named after their content
pairs.json                              by name: prompt, and choice (left, right, skip, or null for none yet)
"""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlr_core.common.atomic import replacing
from rlr_core.common.images import read_picture, to_pil
from rlr_core.errors import UserError
from rlr_core.methods.pairs import save_pairs

INDEX = "pairs.json"
CHOICES = ("left", "right", "skip")
COLUMNS = ("preferred", "rejected", "prompt")
MULTIPLE = 8
"""Of pixels a side, which the latents of every family need."""

_changing = threading.Lock()  # clicks arrive in one thread while a node adds pairs in another


@dataclass(frozen=True)
class Pair:
    """Two pictures of a prompt, and which was chosen."""

    name: str
    prompt: str
    choice: str | None


class PairCollection:
    """A folder of pairs. Every change is on the disk when the call returns."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def pairs(self) -> list[Pair]:
        """All pairs, in the order they came."""
        return [Pair(name, entry["prompt"], entry["choice"]) for name, entry in self._read().items()]

    def pictures(self, name: str) -> tuple[Path, Path]:
        """Files of a pair, left and right."""
        return self.folder / f"{name}_left.png", self.folder / f"{name}_right.png"

    def add(self, left: Tensor, right: Tensor, prompt: str, choice: str | None = None) -> None:
        """Add pictures [3, H, W] in [0, 1]; a pair that is there already stays as it is."""
        pictures = [to_pil(left), to_pil(right)]
        content = b"".join(picture.tobytes() for picture in pictures) + prompt.encode()
        name = hashlib.sha256(content).hexdigest()[:16]
        if name in self._read():
            return
        for picture, path in zip(pictures, self.pictures(name), strict=True):
            with replacing(path) as temporary:
                picture.save(temporary, format="PNG")
        with _changing:
            self._write(self._read() | {name: {"prompt": prompt, "choice": choice}})

    def choose(self, name: str, choice: str | None) -> None:
        """Say which picture of a pair is better, 'skip', or None to take a choice back. Raises UserError."""
        if choice is not None and choice not in CHOICES:
            raise UserError(f"A choice is {', '.join(CHOICES)}, not {choice[:100]!r}.")
        with _changing:
            index = self._read()
            if name not in index:
                raise UserError(f"There is no pair {name[:100]!r} in {self.folder.name!r}: reload the page.")
            index[name]["choice"] = choice
            self._write(index)

    def save(self, path: str | Path) -> int:
        """Write the pairs that were decided as a file of preferences; returns how many. None, no file."""
        decided = [pair for pair in self.pairs() if pair.choice in ("left", "right")]
        rows = []
        for pair in decided:
            left, right = self.pictures(pair.name)
            rows.append((left, right, pair.prompt) if pair.choice == "left" else (right, left, pair.prompt))
        if rows:
            save_rows(rows, path)
        return len(rows)

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.folder / INDEX
        if not path.is_file():
            return {}
        try:
            return {str(name): {"prompt": str(entry["prompt"]), "choice": entry["choice"]}
                    for name, entry in json.loads(path.read_text("utf-8")).items()}  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error!r}): move the folder away and collect anew."
            ) from error

    def _write(self, index: dict[str, dict[str, Any]]) -> None:
        with replacing(self.folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, ensure_ascii=False, indent=1), "utf-8")


def read_table(path: str | Path) -> list[tuple[Path, Path, str]]:
    """Rows of a table with the columns preferred, rejected and prompt: two picture files, relative to the
    table, and what they show. Raises UserError."""
    path = Path(path).expanduser()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{str(path)!r} is no table that can be read: {error}.") from error
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise UserError(f"{str(path)!r} must have a first line {','.join(COLUMNS)} and a line for each pair.")
    for number, row in enumerate(rows, 2):
        if any(row[column] is None for column in COLUMNS):
            raise UserError(f"{str(path)!r}, line {number}: {','.join(COLUMNS)} are not all there.")
    return [(path.parent / row["preferred"], path.parent / row["rejected"], row["prompt"]) for row in rows]


def save_rows(rows: Sequence[tuple[Path, Path, str]], path: str | Path) -> None:
    """Write a file of preferences from picture files, (preferred, rejected, prompt) each.

    All pictures get the size of the first, less what is no multiple of 8: scaled to cover it and cut at the
    sides. Raises UserError for a picture that cannot be read.
    """
    first = read_picture(rows[0][0])
    size = (first.shape[1] // MULTIPLE * MULTIPLE, first.shape[2] // MULTIPLE * MULTIPLE)
    if not all(size):
        raise UserError(f"{rows[0][0]} is smaller than {MULTIPLE} pixels a side.")
    preferred = torch.stack([_covering(row[0], size) for row in rows])
    rejected = torch.stack([_covering(row[1], size) for row in rows])
    save_pairs(path, preferred, rejected, [row[2] for row in rows])


def _covering(path: Path, size: tuple[int, int]) -> Tensor:
    """A picture file as uint8 [3, *size]."""
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(to_pil(read_picture(path)), (size[1], size[0]), Image.Resampling.LANCZOS)
    data = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return data.reshape(*size, 3).permute(2, 0, 1).contiguous()
