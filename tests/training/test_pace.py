"""How far a run is and how long it will take: from its events, with a clock of the test's own."""

from __future__ import annotations

import pytest

from rlr_core.training.events import Event, in_words
from rlr_core.training.pace import Pace

START = {"steps": 10, "first_step": 0, "pictures": 4, "held_out": 8, "evaluate_every": 5}
EVALUATION, UPDATE = 16.0, 30.0  # seconds


class Run:
    """A run of ten updates, evaluated every five, that takes as long as it says."""

    def __init__(self, pace: Pace, clock: list[float]):
        self.pace, self.clock = pace, clock

    def evaluate(self, parts: int = 8) -> None:
        for done in range(parts):
            self.tell("evaluation", done, 8)
            self.clock[0] += EVALUATION / 8

    def update(self, step: int) -> None:
        pictures = [(phase, done) for done in range(4) for phase in ("rollout", "reward")]
        for phase, done in [*pictures, *(("backward", done) for done in range(4))]:
            self.tell(phase, done, 4)
            self.clock[0] += UPDATE / 12
        if step % 5 == 0:
            self.evaluate()
        self.pace(Event("update", {"step": step}))

    def tell(self, phase: str, done: int, total: int) -> None:
        self.pace(Event("progress", {"phase": phase, "done": done, "total": total}))


@pytest.fixture
def run():
    clock = [100.0]
    pace = Pace(lambda: clock[0])
    pace(Event("start", START))
    return Run(pace, clock)


def test_nothing_is_guessed_before_there_is_something_to_tell_from(run):
    assert run.pace.seconds_left() is None and run.pace.done == 0


def test_the_first_evaluation_gives_a_guess_before_any_update(run):
    run.evaluate(4)
    run.tell("evaluation", 4, 8)
    left = run.pace.seconds_left()
    # an update is taken to be three times the sampling of its four pictures: 2 s each
    assert left == pytest.approx(EVALUATION / 2 + 2 * EVALUATION + 10 * 3 * 4 * 2)


def test_time_left_is_exact_where_the_pace_is_even(run):
    run.evaluate()
    run.pace(Event("update", {"step": 0}))
    run.tell("preparing", 0, 0)
    run.tell("rollout", 2, 4)
    run.clock[0] += 1000  # what a method measures first is no part of an update
    run.tell("preparing", 0, 0)
    for step in range(1, 11):
        run.update(step)
        expected = (10 - step) * UPDATE + (2 - (step >= 5) - (step == 10)) * EVALUATION
        assert run.pace.seconds_left() == pytest.approx(expected, abs=1e-6)
    assert run.pace.done == run.pace.total


def test_done_only_grows_and_reaches_the_total(run):
    seen = []
    tell = run.tell
    run.tell = lambda *progress: (tell(*progress), seen.append(run.pace.done))
    run.evaluate()
    run.pace(Event("update", {"step": 0}))
    for step in range(1, 11):
        run.update(step)
    assert seen == sorted(seen) and seen[0] == 0 and run.pace.done == run.pace.total


def test_a_step_of_the_sampler_moves_it_too(run):
    step = {"phase": "evaluation", "done": 0, "total": 8, "at_a_time": 4, "step": 6, "steps": 10}
    run.pace(Event("sampler_step", step))
    assert run.pace.done == 2  # of four pictures, five steps of ten


def test_a_resumed_run_starts_where_it_stopped(run):
    run.pace(Event("start", START | {"first_step": 6}))
    assert run.pace.done == run.pace.total - 4 * 4 * 3 - 8


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (("loading", 0, 0), "loading the model"),
        (("prompts", 3, 60), "encoding prompts, 3 of 60"),
        (("backward", 4, 16), "learning, 4 of 16 pictures"),
        (("rollout", 4, 16, 4, 2, 6), "sampling pictures 5 to 8 of 16, step 2 of 6"),
        (("evaluation", 4, 5, 1, 2, 6), "evaluating picture 5 of 5, step 2 of 6"),
        (("saving", 0, 0), "saving"),
    ],
)
def test_a_phase_in_words(data, words):
    names = ("phase", "done", "total", "at_a_time", "step", "steps")
    assert in_words(dict(zip(names, data, strict=False))) == words
