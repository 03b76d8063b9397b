"""A round of a rating folder for whoever shows it to a person: what is asked, what was said so far.

Marks are kept in marks.json one click at a time; `finish` makes them the round's scores, which the run reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rlr_core.common.atomic import replacing
from rlr_core.errors import UserError
from rlr_core.rewards.rating_folder import picture_name, read_scores

MARKS = "marks.json"
LARGEST = 100.0
"""The largest mark, and minus the smallest."""

Mark = float | None


class RatingRound:
    """One round: its pictures are written, its scores may be missing."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        self.prompts: list[str] = json.loads((folder / "prompts.json").read_text("utf-8"))

    @property
    def pictures(self) -> list[Path]:
        """Their files, in the order asked."""
        return [self.folder / picture_name(place) for place in range(len(self.prompts))]

    @property
    def answered(self) -> bool:
        """Whether every picture has its score."""
        return len(read_scores(self.folder, len(self.prompts))) == len(self.prompts)

    def marks(self) -> list[Mark]:
        """What was said of each picture so far; None where nothing was."""
        path = self.folder / MARKS
        marks = json.loads(path.read_text("utf-8")) if path.is_file() else []
        return marks if len(marks) == len(self.prompts) else [None] * len(self.prompts)

    def keep(self, marks: Sequence[Mark]) -> None:
        """Replace what was said so far. Raises UserError for marks that do not fit, or that come too late."""
        if self.answered:
            raise UserError(
                f"Round {self.number} is rated already: reload the page to see the next pictures."
            )
        if len(marks) != len(self.prompts) or not all(map(_is_mark, marks)):
            raise UserError(
                f"Marks must be {len(self.prompts)} numbers from {-LARGEST:g} to {LARGEST:g}, or null."
            )
        with replacing(self.folder / MARKS) as temporary:
            temporary.write_text(json.dumps(list(marks)), "utf-8")

    def finish(self) -> None:
        """The marks are the scores; a picture without one scores 0, between good and bad."""
        marks = self.marks()
        if not any(marks):
            raise UserError("No picture is marked as good or bad yet: there is nothing to learn from.")
        with replacing(self.folder / "scores.json") as temporary:
            temporary.write_text(json.dumps([mark or 0.0 for mark in marks]), "utf-8")


def last_round(folder: Path) -> RatingRound | None:
    """The latest round of a rating folder that has its pictures; None before the first."""
    for path in sorted(folder.glob("round_*"), reverse=True):
        if (path / "prompts.json").is_file():
            return RatingRound(path, int(path.name.removeprefix("round_")))
    return None


def _is_mark(mark: Mark) -> bool:
    number = isinstance(mark, int | float) and not isinstance(mark, bool)
    return mark is None or (number and math.isfinite(mark) and abs(mark) <= LARGEST)
