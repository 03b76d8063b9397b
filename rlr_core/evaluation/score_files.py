"""Scores of picture files by rewards, as rows, a table of text, or CSV."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlr_core.common.images import read_picture
from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.wrapper import by_name

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class ScoreRow(NamedTuple):
    """A line of `rlr score`."""

    path: str
    prompt: str
    scores: dict[str, float]
    """By reward, in the order asked for."""


def score_images(
    images: Sequence[str],
    rewards: Any,
    prompt: str = "",
    device: torch.device | str = "cpu",
) -> list[ScoreRow]:
    """Scores of pictures by one or several rewards.

    images: files, folders (the pictures in them) and globs; rewards: what `load_reward` takes, or a list of
    that; prompt: one for all. Raises UserError for a path that leads to no picture, an unreadable picture,
    or what a reward refuses.
    """
    paths = find_pictures(images)
    named = by_name(load_reward(reward).to(device) for reward in _listed(rewards))
    for name, reward in named.items():
        if reward.takes == "videos":
            raise UserError(f"Reward {name!r} scores videos, and these are pictures.")
        if prompt.strip():
            reward.prepare([prompt])
    rows = []
    for path in paths:
        picture = read_picture(path)[None].to(device)
        with torch.no_grad():
            scores = {name: reward(picture, [prompt]).item() for name, reward in named.items()}
        rows.append(ScoreRow(str(path), prompt, scores))
    return rows


def _listed(rewards: Any) -> list[Any]:
    """One reward as a list of one."""
    return list(rewards) if isinstance(rewards, (list, tuple)) else [rewards]


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """The pictures that files, folders and globs lead to, each once, folders and globs in order of name."""
    pictures: dict[Path, None] = {}
    for pattern in paths:
        path = Path(pattern)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(child for child in path.iterdir() if child.suffix.lower() in PICTURES)
        else:
            hits = sorted(Path(hit) for hit in glob.glob(str(pattern), recursive=True))
            matches = [hit for hit in hits if hit.suffix.lower() in PICTURES]
        if not matches:
            raise UserError(f"{pattern} leads to no picture ({', '.join(PICTURES)}).")
        pictures.update(dict.fromkeys(matches))
    return list(pictures)


def score_table(rows: Sequence[ScoreRow]) -> str:
    """The rows as a table of text, a column a reward, with their mean below when there are several."""
    names = list(rows[0].scores)
    lines = [["image", *names]]
    lines += [[row.path, *(f"{row.scores[name]:.4f}" for name in names)] for row in rows]
    if len(rows) > 1:
        means = (sum(row.scores[name] for row in rows) / len(rows) for name in names)
        lines.append(["mean", *(f"{mean:.4f}" for mean in means)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def score_csv(rows: Sequence[ScoreRow]) -> str:
    """The rows as CSV: image, prompt, then a column a reward at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(rows[0].scores)
    writer.writerow(["image", "prompt", *names])
    writer.writerows([row.path, row.prompt, *(repr(row.scores[name]) for name in names)] for row in rows)
    return text.getvalue()
