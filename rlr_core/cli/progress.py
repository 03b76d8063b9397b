"""What a person sees while a run goes on: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

from rlr_core.training.events import PHASES, Event

LINES = 20  # lines of a whole run where there is no terminal


class Progress:
    """Follows a run's events; use as on_event of `train`, and as a context manager around it."""

    def __init__(self, stream: TextIO | None = None):
        """stream: None is stderr."""
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.bar: tqdm | None = None
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
        handler = getattr(self, f"_{event.kind}", None)
        if handler is not None:
            handler(event.data)

    def say(self, message: str) -> None:
        """A line of its own, above the bar."""
        tqdm.write(message, file=self.stream)

    def _start(self, data: dict[str, Any]) -> None:
        self.steps, self.first = data["steps"], data["first_step"]
        if self.terminal:
            self.bar = tqdm(
                total=self.steps, initial=self.first, file=self.stream, mininterval=0.3,
                dynamic_ncols=_width(self.stream) > 0, ncols=None if _width(self.stream) > 0 else 120,
                bar_format="{n_fmt}/{total_fmt} |{bar:16}| {elapsed}, {remaining} left{postfix}  {desc}",
            )  # fmt: skip
        elif self.first:
            self.say(f"going on from update {self.first} of {self.steps}")

    def _progress(self, data: dict[str, Any]) -> None:
        if self.bar is not None:
            phase = PHASES.get(data["phase"], data["phase"])
            self.bar.set_description_str(f"{phase} {data['done']} of {data['total']}")

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
            figures = [f"update {row['step']}/{self.steps}", *self._figures(row), self._left(row)]
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

    def _left(self, row: dict[str, Any]) -> str:
        """How long the rest takes at the pace so far, evaluations of the judge and all."""
        if row["step"] in (0, self.first, self.steps):
            return ""
        seconds = row["time/seconds"] / row["step"] * (self.steps - row["step"])
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
