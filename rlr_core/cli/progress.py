"""What a person sees while a run goes on: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from rlr_core.training.events import Event, in_words
from rlr_core.training.pace import Pace

LINES = 20  # lines of a whole run where there is no terminal
PAUSE = 0.1  # seconds between two pictures of the bar inside a phase


class Progress:
    """Follows a run's events; use as on_event of `train`, and as a context manager around it."""

    def __init__(self, stream: TextIO | None = None, say: Callable[[str], None] | None = None):
        """stream: None is stderr; say: takes the lines instead, for a log."""
        self.stream = stream or sys.stderr
        self.terminal = say is None and self.stream.isatty()
        self.say = say or self._write
        self.bar: tqdm | None = None
        self.pace = Pace()
        self.phase = ""
        self.drawn = 0.0
        self.steps = self.first = 0
        self.judge = ""
        self.rates: list[tuple[float, float]] = []
        self.last: dict[str, Any] = {}
        self.warned: set[str] = set()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.bar is not None:
            self.bar.set_description_str("")
            self.bar.close()

    def __call__(self, event: Event) -> None:
        self.pace(event)
        handler = getattr(self, f"_{event.kind}", None)
        if handler is not None:
            handler(event.data)

    def loading(self) -> None:
        """The model is being loaded, of which the run itself knows nothing."""
        self._progress({"phase": "loading", "done": 0, "total": 0})

    def _write(self, message: str) -> None:
        """A line of its own, above the bar."""
        tqdm.write(message, file=self.stream)

    def _start(self, data: dict[str, Any]) -> None:
        self.steps, self.first = data["steps"], data["first_step"]
        if self.terminal:
            self._open(
                "{n_fmt}/{total_fmt} |{bar:16}| {elapsed}{postfix}  {desc}",
                total=self.steps,
                initial=self.first,
            )
        elif self.first:
            self.say(f"going on from update {self.first} of {self.steps}")
        self.phase = ""

    def _open(self, form: str, **settings: Any) -> tqdm:
        """A bar in the terminal, in place of the one before."""
        if self.bar is not None:
            self.bar.leave = False
            self.bar.close()
        self.bar = bar = tqdm(
            file=self.stream,
            mininterval=0.3,
            dynamic_ncols=_width(self.stream) > 0,
            ncols=None if _width(self.stream) > 0 else 120,
            bar_format=form,
            **settings,
        )
        return bar

    def _progress(self, data: dict[str, Any]) -> None:
        new, self.phase = data["phase"] != self.phase, data["phase"]
        if not self.terminal:
            if new and not self.last:  # from the first update on its own lines say enough
                self.say(in_words(data))
            return
        bar = self.bar or self._open("{elapsed}  {desc}")
        if new or time.monotonic() - self.drawn > PAUSE:
            left = self.pace.seconds_left()
            words = [in_words(data)] if left is None else [_left(left), in_words(data)]
            bar.set_description_str("  ".join(words))
            self.drawn = time.monotonic()

    _sampler_step = _progress

    def _warning(self, data: dict[str, Any]) -> None:
        if data["message"] not in self.warned:
            self.warned.add(data["message"])
            self.say(f"Warning: {data['message']}")

    def _update(self, row: dict[str, Any]) -> None:
        judged = row.get("judge/mean") is not None
        if judged or self.bar is None:  # a bar goes on showing what was measured last
            self.judge = _judge(row) if judged else ""
        if self.last and not judged:  # updates that are also judged take longer than their evaluations
            self.rates.append((_evaluations(row) - _evaluations(self.last),
                               row["time/seconds"] - self.last["time/seconds"]))  # fmt: skip
        self.last = row
        if self.bar is not None:
            self.bar.set_postfix_str("  ".join(self._figures(row)), refresh=False)
            self.bar.update(row["step"] - self.bar.n)
        elif judged or row["step"] == self.steps or row["step"] % max(1, self.steps // LINES) == 0:
            figures = [f"update {row['step']}/{self.steps}", *self._figures(row), self._rest(row)]
            self.say("  ".join(figure for figure in figures if figure))

    def _figures(self, row: dict[str, Any]) -> list[str]:
        """Reward, judge and speed, as far as they are known."""
        parts = []
        if row.get("reward/mean") is not None:
            parts.append(f"reward {row['reward/mean']:.3f}")
        if self.judge:
            parts.append(self.judge)
        done, seconds = (
            (sum(values) for values in zip(*self.rates[-10:], strict=True)) if self.rates else (0, 0)
        )
        if seconds > 0:
            parts.append(f"{done / seconds:,.0f} evaluations/s")
        return parts

    def _rest(self, row: dict[str, Any]) -> str:
        """How long the rest takes at the pace so far, evaluations of the judge and all."""
        if row["step"] in (0, self.first, self.steps):
            return ""
        seconds = row["time/seconds"] / row["step"] * (self.steps - row["step"])
        return _left(seconds)


def _left(seconds: float) -> str:
    return f"{tqdm.format_interval(seconds)} left"


def _width(stream: TextIO) -> int:
    """Columns of a terminal; some say 0."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _judge(row: dict[str, Any]) -> str:
    low, high = row.get("judge/low"), row.get("judge/high")
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"judge {row['judge/mean']:.3f}{interval}"


def _evaluations(row: dict[str, Any]) -> float:
    return row.get("evaluations/forward", 0) + row.get("evaluations/backward", 0)


class Counter:
    """Progress of pictures, for `on_progress`: a bar in a terminal, nothing elsewhere."""

    def __init__(self, what: str):
        self.what = what
        self.bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, desc=self.what, file=sys.stderr, disable=None, leave=False)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
