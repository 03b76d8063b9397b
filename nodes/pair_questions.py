"""Pairs that a person is asked about by RLR Preferences: collected in output/rlr/pairs, a click at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlr_core.common.atomic import replacing
from rlr_core.errors import UserError
from rlr_core.methods.pair_collection import PairCollection

from . import host, names

EVENT = "rlr.pairs"
ASKED = "asked.json"


def pairs_folder() -> Path:
    """output/rlr/pairs, where collections and the files made of them lie."""
    return host.runs_folder() / "pairs"


def collection(name: str) -> PairCollection:
    """The collection of this name. Raises UserError for a name that leads elsewhere."""
    return PairCollection(names.inside(pairs_folder(), name))


def pairs_file(name: str) -> Path:
    """The file of preferences that a name, or the path that RLR Preferences gave, means. Raises UserError."""
    base = pairs_folder()
    if Path(name).is_absolute() and Path(name).is_relative_to(base):
        name = Path(name).relative_to(base).as_posix()
    return names.inside(base, f"{name.removesuffix('.safetensors')}.safetensors")


def ask(name: str, node: str, workflow: str) -> int:
    """Show the pairs that are not decided yet in the node; how many there are."""
    pairs = collection(name)
    with replacing(pairs.folder / ASKED) as path:
        path.write_text(json.dumps({"node": node, "workflow": workflow}), "utf-8")
    question = _question(pairs)
    host.send(EVENT, question)
    return len(question["pairs"])


def choose(name: str, pair: str, choice: str) -> None:
    """Store a click: 'left', 'right', 'skip', or '' to take one back."""
    collection(name).choose(pair, choice or None)


def known_questions() -> list[dict[str, Any]]:
    """What every RLR Preferences node should show, oldest first."""
    asked = [path for depth in ("*", "*/*") for path in pairs_folder().glob(f"{depth}/{ASKED}")]
    asked.sort(key=lambda path: path.stat().st_mtime)
    questions = []
    for path in asked:
        try:
            questions.append(_question(PairCollection(path.parent)))
        except UserError as error:
            host.log(str(error))
    return questions


def stamp(name: str) -> str:
    """What changes with every click of a collection."""
    try:
        return ",".join(f"{pair.name}={pair.choice}" for pair in collection(name).pairs())
    except UserError:
        return ""


def _question(pairs: PairCollection) -> dict[str, Any]:
    """What RLR Preferences shows: the pairs that are not decided, and how many are."""
    place = json.loads((pairs.folder / ASKED).read_text("utf-8"))
    every = pairs.pairs()
    shown = [
        {
            "name": pair.name,
            "prompt": pair.prompt,
            "pictures": [host.output_reference(path) for path in pairs.pictures(pair.name)],
        }
        for pair in every
        if pair.choice is None
    ]
    name = pairs.folder.relative_to(pairs_folder()).as_posix()
    return place | {"name": name, "pairs": shown, "decided": len(every) - len(shown)}
