"""What the command line asks of the rewards: which there are, and what they say of some pictures."""

from __future__ import annotations

import csv
import glob
import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlr_core.errors import UserError
from rlr_core.rewards import REWARDS, load_reward, reward_class
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import locate

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class RewardRow(NamedTuple):
    """A line of `rlr list rewards`."""

    name: str
    summary: str
    ready: bool
    missing: str
    """The files that are not there, by their usual names; empty when ready."""
    where: str
    """Where to get them and where they go."""
    options: str
    """The constructor's options, required ones first."""


class ScoreRow(NamedTuple):
    """A line of `rlr score`."""

    path: str
    prompt: str
    scores: dict[str, float]
    """By reward, in the order asked for."""


def list_rewards() -> list[RewardRow]:
    """Every reward, whether its files are there, and if not, which are missing and where they go."""
    rows = []
    for name, entry in REWARDS.items():
        factory = reward_class(name)
        missing = []
        for needed in getattr(factory, "files", ()):
            try:
                locate(needed)
            except UserError:
                missing.append(needed)
        rows.append(
            RewardRow(
                name,
                entry.summary,
                not missing,
                ", ".join(needed.names[0] for needed in missing),
                " ".join(needed.advice() for needed in missing),
                _options(factory),
            )
        )
    return rows


def score_images(
    images: Sequence[str],
    rewards: str | Reward | Sequence[str | Reward],
    prompt: str = "",
    device: torch.device | str = "cpu",
    options: dict[str, Any] | None = None,
) -> list[ScoreRow]:
    """Scores of pictures by one or several rewards.

    images: files, folders (the pictures in them) and globs; rewards: names or rewards; prompt: one for all;
    options: the constructor's options of a reward that is given by name, when there is one reward.
    Raises UserError for a path that leads to no picture, an unreadable picture, or what the reward refuses.
    """
    from rlr_core.common.images import read_picture

    paths = find_pictures(images)
    rewards = [rewards] if isinstance(rewards, (str, Reward)) else list(rewards)
    if options and len(rewards) != 1:
        raise UserError(
            f"Options {', '.join(options)} can be given when there is one reward, not {len(rewards)}."
        )
    loaded = [load_reward(reward, **(options or {})).to(device) for reward in rewards]
    for reward in loaded:
        if reward.takes == "videos":
            raise UserError(f"Reward {reward.name!r} scores videos, and these are pictures.")
        if prompt.strip():
            reward.prepare([prompt])
    rows = []
    for path in paths:
        picture = read_picture(path)[None].to(device)
        with torch.no_grad():
            scores = {reward.name: reward(picture, [prompt]).item() for reward in loaded}
        rows.append(ScoreRow(str(path), prompt, scores))
    return rows


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """The pictures that files, folders and globs lead to, each once, folders and globs in order of name."""
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(child for child in path.iterdir() if child.suffix.lower() in PICTURES)
        else:
            hits = sorted(Path(hit) for hit in glob.glob(str(given), recursive=True))
            matches = [hit for hit in hits if hit.suffix.lower() in PICTURES]
        if not matches:
            raise UserError(f"{given} leads to no picture ({', '.join(PICTURES)}).")
        found.update(dict.fromkeys(matches))
    return list(found)


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


def _options(factory: type) -> str:
    """The constructor's options as text: those without a default first, the others with theirs."""
    if factory.__init__ is object.__init__:
        return ""
    parameters = list(inspect.signature(factory).parameters.values())
    parameters.sort(key=lambda parameter: parameter.default is not parameter.empty)
    return ", ".join(
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
        for parameter in parameters
    )
