"""A run as it is seen while it goes on: progress bar, log, preview picture, and the live view's events.

What the live view of a node should show is kept here too, for pages that are loaded again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.cli.progress import Progress
from rlr_core.training.events import PHASES, Event, in_words
from rlr_core.training.pace import Pace
from rlr_core.training.results import Results, decimated
from rlr_core.training.run_folder import read_metrics

from . import host, images

if TYPE_CHECKING:
    from rlr_core.config import TrainConfig

EVENT = "rlr.live"
MOST_POINTS = 400
MOST_SAMPLES = 10
MOST_RUNS = 12
MOST_PAGES = 64
PAUSE = 0.25
"""Seconds between two events about progress inside an update."""
SERIES = {
    "reward": "reward/mean",
    "held_out": "reward/held_out",
    "judge": "judge/mean",
    "distance": "distance",
}
"""What the charts draw -> its name in metrics.jsonl. judge/mean is the held-out reward where no judge is."""

_runs: OrderedDict[str, dict[str, Any]] = OrderedDict()
_pages: OrderedDict[str, None] = OrderedDict()


def known_runs() -> list[dict[str, Any]]:
    """What every node that has trained since the server was started should show, oldest first."""
    return list(_runs.values())


def seen(page: str | None) -> None:
    """A page, by its client's id, has asked for what is known: it has the live view."""
    if page:
        _pages[page[:64]] = None
        while len(_pages) > MOST_PAGES:
            _pages.popitem(last=False)


def remember(view: dict[str, Any]) -> None:
    """Keep what a node shows, for pages that are loaded later; in place of what it showed before."""
    key = f"{view['workflow']}/{view['node']}"
    _runs.pop(key, None)
    _runs[key] = view
    while len(_runs) > MOST_RUNS:
        _runs.popitem(last=False)


def view_of(folder: Path, node: str, workflow: str, config: TrainConfig, **status: Any) -> dict[str, Any]:
    """All that the live view shows of a run folder: points, samples, and `status`."""
    points = [_point(row) for row in decimated(read_metrics(folder), MOST_POINTS)]
    pictures = sorted((folder / "samples").glob("step_*.png"))
    return {
        "node": node,
        "workflow": workflow,
        "run": folder.name,
        "steps": config.steps,
        "step": points[-1]["step"] if points else 0,
        "reward": config.reward,
        "judge": config.evaluation.judge or "",
        "phase": "",
        "left": None,
        "points": points,
        "samples": [_sample(path) for path in _spread(pictures, MOST_SAMPLES)],
        **status,
    }


def view_of_results(results: Results, node: str, workflow: str, state: str, message: str) -> dict[str, Any]:
    """All that the live view shows of a run that does not run now."""
    seconds = results.metrics[-1].get("time/seconds", 0.0) if results.metrics else 0.0
    return view_of(
        results.folder, node, workflow, results.config, step=results.step, state=state, message=message,
        seconds=seconds,
    )  # fmt: skip


def show(view: dict[str, Any]) -> None:
    """Show a whole view, now and on pages that are loaded later."""
    remember(view)
    host.send(EVENT, view)


class Live:
    """Receives a run's events; an instance is the engine's on_event."""

    def __init__(self, folder: Path, node: str, workflow: str, config: TrainConfig):
        """node: the execution id ('7:3' inside a subgraph); workflow: its id, where it has one."""
        self.folder = folder
        self.pace, self.lines = Pace(), Progress(say=host.log)
        self.bar = host.Progress(1)
        self.view = view_of(folder, node, workflow, config, state="running", message="", seconds=0.0)
        self._started = time.monotonic()
        self._last_sent = 0.0
        self._later: threading.Timer | None = None
        self.lines.loading()
        self.view["phase"] = PHASES["loading"]
        show(self.view)

    def __call__(self, event: Event) -> None:
        host.check_cancel()
        self.pace(event)
        self.lines(event)
        getattr(self, f"_on_{event.kind}", lambda data: None)(event.data)

    def end(self, state: str, message: str = "") -> None:
        """The run is over: finished, cancelled or failed."""
        self._tell(state=state, message=message, phase="", left=None)

    def warn(self, message: str) -> None:
        """A sentence for the log and the view."""
        host.log(message)
        self._tell(message=message)

    # --- events of the engine ---

    def _on_start(self, data: Mapping[str, Any]) -> None:
        self._tell(step=data["first_step"], steps=data["steps"])
        self._move()

    def _on_progress(self, data: Mapping[str, Any]) -> None:
        self.view |= {"phase": in_words(data), "left": self.pace.seconds_left()}
        wait = self._last_sent + PAUSE - time.monotonic()
        if wait <= 0:
            self._tell_phase()
            self._move(data)
        elif self._later is None:  # what follows may take long, and nothing be told meanwhile
            self._later = threading.Timer(wait, self._tell_phase)
            self._later.daemon = True
            self._later.start()

    _on_sampler_step = _on_progress

    def _on_update(self, data: Mapping[str, Any]) -> None:
        point = _point(data)
        self.view["points"].append(point)
        if len(self.view["points"]) > 2 * MOST_POINTS:
            self.view["points"] = decimated(self.view["points"], MOST_POINTS, keep="judge")
        self._tell(point=point, step=data["step"], left=self.pace.seconds_left())
        self._move(picture=True)

    def _on_samples(self, data: Mapping[str, Any]) -> None:
        sample = _sample(self.folder / "samples" / f"step_{data['step']:06d}.png")
        kept = [old for old in self.view["samples"] if old["step"] < data["step"]]
        self.view["samples"] = _spread([*kept, sample], MOST_SAMPLES)
        self._tell(sample=sample)
        self._move(picture=True)

    def _on_warning(self, data: Mapping[str, Any]) -> None:
        self._tell(message=data["message"])

    # --- sending ---

    def _tell_phase(self) -> None:
        self._tell(phase=self.view["phase"], left=self.view["left"])

    def _tell(self, **news: Any) -> None:
        """Send what is new; `point` and `sample` are in the view's lists already."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._last_sent = time.monotonic()
        news["seconds"] = round(self._last_sent - self._started, 1)
        self.view |= {name: value for name, value in news.items() if name not in ("point", "sample")}
        place = {name: self.view[name] for name in ("node", "workflow", "run", "state")}
        host.send(EVENT, place | news)

    def _move(self, data: Mapping[str, Any] | None = None, picture: bool = False) -> None:
        """Move the bar. picture: a preview goes along where the page does not have the live view."""
        if self.pace.steps:
            done, total = self.pace.done, self.pace.total
        else:  # prompts are encoded before the run starts
            done, total = (data or {}).get("done", 0), (data or {}).get("total", 0)
        preview = self._preview() if picture and not host.page_is_one_of(_pages) else None
        self.bar.show_share(done / total if total else 0.0, preview)

    def _preview(self) -> Any:
        pictures = sorted((self.folder / "samples").glob("step_*.png"))
        curve = [(p["step"], p["reward"]) for p in self.view["points"] if p.get("reward") is not None]
        title = f"update {self.view['step']} of {self.view['steps']}: {self.view['reward']}"
        return images.preview(pictures[-1] if pictures else None, curve, title)


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
