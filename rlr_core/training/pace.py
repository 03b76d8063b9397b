"""How far a run is and how long the rest will take, from the events that it tells."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rlr_core.training.events import Event

LEARNING = 2.0
"""Learning from a picture is taken to be this many times the work of sampling it."""
RECENT = 10
"""Updates that the pace is the mean of."""


class Pace:
    """Follows a run's events. Work is counted in pictures sampled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """clock: seconds."""
        self.clock = clock
        self.steps = self.step = 0
        self._pictures = self._held_out = self._every = 1
        self._first_evaluation = False
        """Whether the base model is still to be evaluated."""
        self._evaluating = False
        self._part = 0.0
        """Share of the update or the evaluation in hand that is done."""
        self._began = clock()
        self._update_seconds: deque[float] = deque(maxlen=RECENT)
        self._evaluation_seconds: float | None = None

    def __call__(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event.data)

    @property
    def total(self) -> float:
        """All of the work."""
        return self.steps * self._update_work + (1 + self._evaluations_after(0)) * self._held_out

    @property
    def done(self) -> float:
        """What of it is done."""
        updates, evaluations = self._left()
        return self.total - updates * self._update_work - evaluations * self._held_out

    def seconds_left(self) -> float | None:
        """About how long the rest takes; None until there is something to tell it from."""
        evaluation = self._evaluation_seconds
        if evaluation is None and self._evaluating and self._part > 0:
            evaluation = (self.clock() - self._began) / self._part
        update = sum(self._update_seconds) / len(self._update_seconds) if self._update_seconds else None
        ratio = self._held_out / self._update_work
        if update is None:
            if evaluation is None:
                return None
            update = evaluation / ratio
        if evaluation is None:
            evaluation = update * ratio
        updates, evaluations = self._left()
        return max(0.0, updates * update + evaluations * evaluation)

    # --- events ---

    def _on_start(self, data: Mapping[str, Any]) -> None:
        self.steps, self.step = data["steps"], data["first_step"]
        self._pictures, self._held_out = data["pictures"], data["held_out"]
        self._every = data["evaluate_every"]
        self._first_evaluation = self.step == 0
        self._began = self.clock()

    def _on_progress(self, data: Mapping[str, Any]) -> None:
        self._take(data["phase"], data["done"], data["total"])

    def _on_sampler_step(self, data: Mapping[str, Any]) -> None:
        within = data["at_a_time"] * (data["step"] - 1) / data["steps"]  # this one is yet to come
        self._take(data["phase"], data["done"] + within, data["total"])

    def _take(self, phase: str, done: float, total: float) -> None:
        share = done / total if total else 0.0
        if phase == "evaluation":
            if not self._evaluating:
                self._update_is_over()
            self._evaluating, self._part = True, share
        elif phase == "preparing":  # at its beginning and its end: it is no part of an update
            self._part, self._began = 0.0, self.clock()
        elif phase in ("rollout", "reward"):
            self._part = share / (1 + LEARNING)
        elif phase == "backward":
            self._part = (1 + LEARNING * share) / (1 + LEARNING)

    def _on_update(self, row: Mapping[str, Any]) -> None:
        if self._evaluating:
            self._evaluation_seconds = self.clock() - self._began
        else:
            self._update_is_over()
        self.step = row["step"]
        self._first_evaluation = self._evaluating = False
        self._part = 0.0
        self._began = self.clock()

    def _update_is_over(self) -> None:
        if not self._first_evaluation:
            self._update_seconds.append(self.clock() - self._began)
        self._part, self._began = 0.0, self.clock()

    # --- figures ---

    @property
    def _update_work(self) -> float:
        return self._pictures * (1 + LEARNING)

    def _evaluations_after(self, step: int) -> int:
        """Evaluations of the updates after this one: every so many, and of the last."""
        last = step < self.steps and self.steps % self._every != 0
        return self.steps // self._every - step // self._every + last

    def _left(self) -> tuple[float, float]:
        """Updates and evaluations to go."""
        updates: float = self.steps - self.step
        evaluations: float = self._evaluations_after(self.step) + self._first_evaluation
        if not self._evaluating:
            return updates - self._part, evaluations
        return updates - (not self._first_evaluation), evaluations - self._part
