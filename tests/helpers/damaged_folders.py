"""Damaged model folders, the same ones from the same seed: parts cut off, emptied, mixed up, odd or gone."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from damage import ODD, damaged

HUGE = [10**5, 10**9, 2**31]
TEXTS = ["", "null", "[]", "{}", '"x"', '{"a":', "[" * 100_000, "\u00ff\u00fe"]


def damage(folder: Path, other: Path, seed: int) -> str:
    """Do one thing to a folder; what it was. other: a folder of another family."""
    random_ = random.Random(seed)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    described = [file for file in files if file.suffix == ".json"]
    weights = [file for file in files if file.suffix == ".safetensors"]
    way, among = random_.choice(
        [*[(_odd_value, described)] * 4, (_less, described), (_text, described), (_damaged, weights),
         (_gone, files), (_folder_instead, files), (_swapped, weights)]
    )  # fmt: skip
    file = random_.choice(among)
    return f"{file.relative_to(folder)}: {WAYS[way]} {way(file, other, random_) or ''}"


def _odd_value(file: Path, other: Path, random_: random.Random) -> str | None:
    settings = json.loads(file.read_text())
    if not isinstance(settings, dict) or not settings:
        return _text(file, other, random_)
    name, odd = random_.choice(sorted(settings)), random_.choice([*ODD, *HUGE])
    if isinstance(settings[name], list) and settings[name] and random_.random() < 0.5:
        settings[name][random_.randrange(len(settings[name]))] = odd
    else:
        settings[name] = odd
    file.write_text(json.dumps(settings))
    return f"{name} = {odd!r}"


def _less(file: Path, other: Path, random_: random.Random) -> str | None:
    settings = json.loads(file.read_text())
    if not isinstance(settings, dict) or not settings:
        return _text(file, other, random_)
    name = random_.choice(sorted(settings))
    del settings[name]
    file.write_text(json.dumps(settings))
    return name


def _text(file: Path, other: Path, random_: random.Random) -> str:
    text = random_.choice(TEXTS)
    file.write_text(text, encoding="latin-1")
    return repr(text[:5])


def _damaged(file: Path, other: Path, random_: random.Random) -> None:
    *_, last = damaged(file.read_bytes(), random_.randrange(1, 9), random_.randrange(10**6))
    file.write_bytes(last)


def _gone(file: Path, other: Path, random_: random.Random) -> None:
    file.unlink()


def _folder_instead(file: Path, other: Path, random_: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _swapped(file: Path, other: Path, random_: random.Random) -> str:
    """The whole part, for another of this folder or of the other one."""
    parts = [part for root in (file.parent.parent, other) for part in sorted(root.iterdir()) if part.is_dir()]
    part = random_.choice([part for part in parts if part != file.parent])
    shutil.rmtree(file.parent)
    shutil.copytree(part, file.parent)
    return f"{part.parent.name}/{part.name}"


WAYS: dict[Callable[..., object], str] = {
    _odd_value: "odd value,",
    _less: "without",
    _text: "is now",
    _damaged: "damaged",
    _gone: "gone",
    _folder_instead: "a folder",
    _swapped: "replaced by",
}
