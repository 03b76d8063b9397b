"""What a run asks a person: kept in its folder, shown by RLR Rate, answered through routes.

All of it lies on the disk, a click as soon as it is made, so that a page that is loaded again, a server that
is started again and Cancel find it as it was.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.common.atomic import replacing
from rlr_core.errors import UserError
from rlr_core.rewards.rating_round import RatingRound, last_round
from rlr_core.rewards.ratings import FOLDER

from . import host, names

if TYPE_CHECKING:
    from rlr_core.config import TrainConfig

    from .sockets import Person

EVENT = "rlr.rate"
ASKED = "asked.json"
"""Beside the rounds: which node asks, and how."""
ANSWERS = ("scores.json", "ratings.csv")


def waiting(folder: Path, config: TrainConfig) -> bool:
    """Whether the run has come to pictures that nobody has rated yet, short of its last update."""
    from rlr_core.training.results import read_results

    results = read_results(folder)
    asked = last_round(folder / FOLDER)
    return results.waiting and results.step < config.steps and asked is not None and not asked.answered


def ask(folder: Path, person: Person, workflow: str) -> dict[str, Any]:
    """Show the run's last round in its RLR Rate node, now and after any restart. Returns what is shown."""
    asked = {"node": person.node, "workflow": workflow, "mode": person.mode}
    with replacing(folder / FOLDER / ASKED) as path:
        path.write_text(json.dumps(asked), "utf-8")
    question = _question(folder)
    assert question is not None, "a run that waits has a round"
    host.send(EVENT, question)
    return question


def tell(folder: Path, person: Person, workflow: str, state: str) -> None:
    """Let RLR Rate say what the run does: 'working', 'over', or 'stopped'."""
    place = {"node": person.node, "workflow": workflow, "run": _name(folder)}
    host.send(EVENT, place | {"state": state})


def known_questions() -> list[dict[str, Any]]:
    """What every RLR Rate node should show, oldest first."""
    base = host.runs_folder()
    asked = [path for depth in ("*", "*/*") for path in base.glob(f"{depth}/{FOLDER}/{ASKED}")]
    asked.sort(key=lambda path: path.stat().st_mtime)
    questions = [_question(path.parent.parent) for path in asked]
    return [question for question in questions if question is not None]


def sentence(question: dict[str, Any]) -> str:
    """What RLR Train says while it waits."""
    count = len(question["pictures"])
    return f"{count} pictures wait for your ratings: mark them in RLR Rate and press Next there."


def keep_marks(run: str, number: int, marks: list[float | None]) -> None:
    """Store what was clicked so far. Raises UserError where it does not fit the round."""
    _round(run, number).keep(marks)


def finish(run: str, number: int) -> None:
    """Hand the marks to the run, which goes on when it is queued again."""
    _round(run, number).finish()


def answered(run_name: str | None) -> str:
    """What changes when a round of the runs of this name is rated; None: of any run."""
    base, series = host.runs_folder(), None
    if run_name is not None:
        try:
            series = names.inside(base, run_name)
        except UserError:
            return ""
        base = series.parent
    rounds = [path for name in ANSWERS for path in base.glob(f"*/{FOLDER}/round_*/{name}")]
    if series is not None:
        own = re.compile(re.escape(series.name) + r"(_\d+)?")
        rounds = [path for path in rounds if own.fullmatch(path.parents[2].name)]
    return ",".join(sorted(f"{path.parents[2].name}/{path.parent.name}" for path in rounds))


def _round(run: str, number: int) -> RatingRound:
    found = last_round(host.run_folder(run) / FOLDER)
    if found is None or found.number != number:
        raise UserError(f"Run {run[:100]!r} does not ask about round {number}: reload the page.")
    return found


def _question(folder: Path) -> dict[str, Any] | None:
    """What RLR Rate shows of a run that waits; None of one that does not."""
    asked = last_round(folder / FOLDER)
    if asked is None or asked.answered:
        return None
    place = json.loads((folder / FOLDER / ASKED).read_text("utf-8"))
    return place | {
        "state": "waiting",
        "run": _name(folder),
        "round": asked.number,
        "pictures": [host.output_reference(path) for path in asked.pictures],
        "prompts": asked.prompts,
        "marks": asked.marks(),
    }


def _name(folder: Path) -> str:
    return folder.relative_to(host.runs_folder()).as_posix()
