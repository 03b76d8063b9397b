"""What folders say of their parts, config.json and the like: read with care, for they come from anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlr_core.errors import UserError, one_line

LONGEST = 2**14
"""Places of a table of positions that no published model reaches."""
TABLES = ("pos_embed", "seq_len", "axes_lens", "sample_size", "train_timesteps")
"""In the names of settings that make a table before any weight is compared."""

COUNT = re.compile(r"(num|n)_\w*layers|\w*layers_per_block|depth")
"""Names of settings that say how many layers there are."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Say in one sentence what a library cannot make sense of: in a damaged file it may raise anything.

    what: the beginning of the sentence, such as '<folder> cannot be loaded'.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{what}: {one_line(error) or type(error).__name__}") from error


def read(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. what: the beginning of the sentence that is raised where it is none."""
    with reading(what):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no settings")
        for name, number in _numbers(found):
            if number > LONGEST and any(table in name for table in TABLES):
                raise ValueError(f"{name} is {number:,}; the largest that is known here is {LONGEST:,}")
        return found


def check_layers(config: dict[str, Any], weights: int, folder: Path) -> None:
    """Raise UserError for a network with more layers than its files have weights: building it takes hours."""
    for name, number in _numbers(config):
        if COUNT.fullmatch(name) and number > weights:
            raise UserError(
                f"{folder} does not fit its config.json: {name} is {number:,}, with {weights:,} weights."
            )


def _numbers(config: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a description, with the name of the setting that it is in."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _numbers(value, key)
    elif isinstance(config, list):
        for value in config:
            yield from _numbers(value, name)
    elif isinstance(config, int | float) and not isinstance(config, bool):
        yield name, config
