"""A run as it is seen while it goes on: progress bar, preview picture, and the live view's events.

What the live view of a node should show is kept here too, for pages that are loaded again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlr_core.training.events import PHASES, Event
from rlr_core.training.results import decimated
from rlr_core.training.run_folder import read_metrics

from . import host, images

EVENT = "rlr.live"
MOST_POINTS = 400
MOST_SAMPLES = 10
MOST_RUNS = 12
PAUSE = 0.25
"""Seconds between two events about progress inside an update."""
SERIES = {"reward": "reward/mean", "judge": "judge/mean", "kl": "kl"}
"""What the chart draws -> its name in metrics.jsonl. judge/mean is the held-out reward where no judge is."""

_runs: OrderedDict[str, dict[str, Any]] = OrderedDict()


def known_runs() -> list[dict[str, Any]]:
    """What every node that has trained since the server was started should show, oldest first."""
    return list(_runs.values())


def remember(view: dict[str, Any]) -> None:
    """Keep what a node shows, for pages that are loaded later; in place of what it showed before."""
    key = f"{view['workflow']}/{view['node']}"
    _runs.pop(key, None)
    _runs[key] = view
    while len(_runs) > MOST_RUNS:
        _runs.popitem(last=False)


def view_of(folder: Path, node: str, workflow: str, **status: Any) -> dict[str, Any]:
    """All that the live view shows of a run folder: points, samples, and `status`."""
    points = [_point(row) for row in decimated(read_metrics(folder), MOST_POINTS)]
    pictures = sorted((folder / "samples").glob("step_*.png"))
    samples = [_sample(path) for path in _spread(pictures, MOST_SAMPLES)]
    return {"node": node, "workflow": workflow, "points": points, "samples": samples, **status}


class Live:
    """Receives a run's events; an instance is the engine's on_event."""

    def __init__(self, folder: Path, node: str, workflow: str, judge: str, reward: str):
        """node: the execution id ('7:3' inside a subgraph); workflow: its id, where it has one."""
        self.folder = folder
        self.view = view_of(
            folder, node, workflow, run=folder.name, state="running", phase="loading", done=0, total=0,
            step=0, steps=0, reward=reward, judge=judge, message="", seconds=0.0,
        )  # fmt: skip
        self.progress: host.Progress | None = None
        self._last_sent = 0.0
        remember(self.view)
        host.send(EVENT, self.view)

    def __call__(self, event: Event) -> None:
        host.check_cancel()
        getattr(self, f"_on_{event.kind}", lambda data: None)(event.data)

    def end(self, state: str, message: str = "") -> None:
        """The run is over: finished, cancelled or failed."""
        self._tell(state=state, message=message)

    def warn(self, message: str) -> None:
        """A sentence for the log and the view."""
        host.log(message)
        self._tell(message=message)

    # --- events of the engine ---

    def _on_start(self, data: Mapping[str, Any]) -> None:
        self.progress = host.Progress(data["steps"])
        self._tell(step=data["first_step"], steps=data["steps"], phase="")
        self._show()

    def _on_progress(self, data: Mapping[str, Any]) -> None:
        if time.monotonic() - self._last_sent < PAUSE:
            return
        phase = PHASES.get(data["phase"], data["phase"])
        self._tell(phase=phase, done=data["done"], total=data["total"])
        if self.progress is not None:  # prompts are encoded before the run starts
            self.progress.show(self.view["step"])

    def _on_update(self, data: Mapping[str, Any]) -> None:
        point = _point(data)
        self.view["points"].append(point)
        if len(self.view["points"]) > 2 * MOST_POINTS:
            self.view["points"] = decimated(self.view["points"], MOST_POINTS, keep="judge")
        self._tell(point=point, step=data["step"], seconds=data.get("time/seconds", 0.0))
        self._show(picture=True)

    def _on_samples(self, data: Mapping[str, Any]) -> None:
        sample = _sample(self.folder / "samples" / f"step_{data['step']:06d}.png")
        kept = [old for old in self.view["samples"] if old["step"] < data["step"]]
        self.view["samples"] = _spread([*kept, sample], MOST_SAMPLES)
        self._tell(sample=sample)
        self._show(picture=True)

    def _on_warning(self, data: Mapping[str, Any]) -> None:
        self.warn(data["message"])

    # --- sending ---

    def _tell(self, **news: Any) -> None:
        """Send what is new; `point` and `sample` are in the view's lists already."""
        self._last_sent = time.monotonic()
        self.view |= {name: value for name, value in news.items() if name not in ("point", "sample")}
        place = {name: self.view[name] for name in ("node", "workflow", "run", "state")}
        host.send(EVENT, place | news)

    def _show(self, picture: bool = False) -> None:
        """Move the bar; a preview picture for clients without our JavaScript goes along."""
        if self.progress is None:
            return
        preview = None
        if picture:
            pictures = sorted((self.folder / "samples").glob("step_*.png"))
            curve = [(p["step"], p["reward"]) for p in self.view["points"] if p.get("reward") is not None]
            title = f"update {self.view['step']} of {self.view['steps']}: {self.view['reward']}"
            preview = images.preview(pictures[-1] if pictures else None, curve, title)
        self.progress.show(self.view["step"], preview)


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    point = {name: row[key] for name, key in SERIES.items() if row.get(key) is not None}
    return {"step": row["step"], **point}


def _sample(path: Path) -> dict[str, Any]:
    return {"step": int(path.stem.removeprefix("step_")), "image": images.thumbnail(path)}


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most`: the first, the last, and evenly between."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
