"""How fast methods learn: what a judge says of the demo after so many seconds of work, beside the peers.

Seconds are those that a CPU's cores were at work for the updates, so that other programs do not count, and
what watching costs is in none of them. A curve is a JSON file, so that a benchmark can be interrupted, spread
over several processes, and reported again.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlr_core.benchmarks.comparison import claimed, result_file, trainer_of
from rlr_core.benchmarks.peers import PEERS
from rlr_core.config import TrainConfig
from rlr_core.errors import UserError


@dataclass
class Curve:
    """One training of one method, ours or a peer's."""

    name: str
    seed: int
    marks: Sequence[float]
    """Seconds at which it is judged."""


def run(
    folder: Path,
    config: TrainConfig,
    curves: Sequence[Curve],
    samples: int,
    peers: str | None = None,
    on_done: Callable[[str], None] = print,
) -> None:
    """Run the curves that have no result in `folder` yet. peers: the Python that has TRL."""
    folder.mkdir(parents=True, exist_ok=True)
    for curve in curves:
        with claimed(result_file(folder, curve.name, curve.seed)) as write:
            if write is None:
                continue
            if curve.name in PEERS:
                points = _theirs(curve, config, samples, peers, folder)
            else:
                points = _ours(curve, config, samples)
            write({"name": curve.name, "seed": curve.seed, "points": points})
            on_done(f"{curve.name}, seed {curve.seed}: done")


def _ours(curve: Curve, config: TrainConfig, samples: int) -> list[dict[str, Any]]:
    trainer = trainer_of(curve.name, curve.seed, config, samples)
    points = [{"mark": 0.0, "seconds": 0.0, "updates": 0, "judge": _judged(trainer)}]
    spent, row = _timed(trainer.prepare), {"step": 0}
    for mark in curve.marks:
        while spent < mark:
            start = time.process_time()
            row = trainer.update()
            spent += time.process_time() - start
        points.append({"mark": mark, "seconds": spent, "updates": row["step"], "judge": _judged(trainer)})
    return points


def _theirs(
    curve: Curve, config: TrainConfig, samples: int, python: str | None, folder: Path
) -> list[dict[str, Any]]:
    """A peer trains in its own environment; its LoRAs are judged here, on the pictures that judge ours."""
    if python is None:
        raise UserError(f"{curve.name} needs the Python of an environment that has TRL: --peers PYTHON.")
    own = result_file(folder, curve.name, curve.seed).with_suffix("").absolute()
    command = [python, "-m", "rlr_core.benchmarks.peers", curve.name, str(curve.seed), str(own)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *map(str, curve.marks)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{curve.name} did not run in {python}:\n{done.stderr[-2000:]}")
    points = []
    for row in [{"mark": 0.0, "seconds": 0.0, "updates": 0}, *json.loads((own / "marks.json").read_text())]:
        start = str(own / row["lora"]) if "lora" in row else None
        trainer = trainer_of("full", curve.seed, config, samples, start)
        points.append({key: row[key] for key in ("mark", "seconds", "updates")} | {"judge": _judged(trainer)})
    return points


def _judged(trainer: Any) -> list[float]:
    return trainer.evaluate().scores["judge"].tolist()


def _timed(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def report(folder: Path) -> list[list[str]]:
    """A table of all curves in `folder`: the judge's score at each mark, of each seed and their mean, in
    falling order at the last."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*-seed*.json")):
        result = json.loads(file.read_text())
        found.setdefault(result["name"], []).append(result)
    rows: list[tuple[float, list[str]]] = []
    head = ["method"]
    for name, results in found.items():
        results.sort(key=lambda result: result["seed"])
        row, last = [name], 0.0
        for place, point in enumerate(results[0]["points"]):
            each = [100 * _mean(result["points"][place]["judge"]) for result in results]
            last = _mean(each)
            row.append(" ".join(f"{one:.1f}" for one in each) + f" ({last:.1f})")
            if len(head) == place + 1:
                head.append(f"{point['mark']:g} s")
        updates = [result["points"][-1]["updates"] for result in results]
        row.append(f"{_mean(updates):.0f}")
        rows.append((last, row))
    return [[*head, "updates"]] + [row for _, row in sorted(rows, key=lambda item: -item[0])]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
