"""What the command line prints while it works, and its tables."""

import io

import pytest
import torch

from rlr_core.cli.progress import Progress
from rlr_core.cli.tables import comparison, table
from rlr_core.evaluation.measures import Evaluation
from rlr_core.training.events import Event


class Terminal(io.StringIO):
    def isatty(self):
        return True


def follow(stream, steps, every=10, first=0):
    with Progress(stream) as progress:
        progress(Event("start", {"steps": steps, "first_step": first, "pictures": 16, "held_out": 32,
                                 "evaluate_every": every}))  # fmt: skip
        progress(Event("update", {"step": first, "judge/mean": 0.5, "judge/low": 0.4, "judge/high": 0.6,
                                  "time/seconds": 1.0}))  # fmt: skip
        for step in range(first + 1, steps + 1):
            progress(Event("progress", {"phase": "backward", "done": 0, "total": 2}))
            row = {"step": step, "reward/mean": 0.25, "time/seconds": 1.0 + 2 * step,
                   "evaluations/forward": 60 * step, "evaluations/backward": 20 * step}  # fmt: skip
            if step % every == 0:
                row |= {"judge/mean": 0.75, "judge/low": 0.7, "judge/high": 0.8}
            progress(Event("warning", {"message": "the reward is constant"}))
            progress(Event("saved", {"step": step, "path": "x"}))
            progress(Event("update", row))
        progress(Event("done", {"step": steps, "reason": "finished"}))
    return stream.getvalue()


@pytest.mark.parametrize("steps", [3, 60, 1000])
def test_without_a_terminal_progress_is_some_lines_and_each_warning_once(steps):
    lines = follow(io.StringIO(), steps, every=50).splitlines()
    assert len(lines) <= 1 + 1 + 20 + 1 + steps // 50
    assert lines.count("Warning: the reward is constant") == 1
    assert lines[-1].startswith(f"update {steps}/{steps}  reward 0.250")
    assert all("\r" not in line for line in lines)


def test_progress_lines_say_reward_judge_speed_and_time_left():
    lines = follow(io.StringIO(), 40).splitlines()
    assert lines[0] == "update 0/40  judge 0.500 [0.400, 0.600]"
    line = next(line for line in lines if line.startswith("update 20/"))
    assert line == "update 20/40  reward 0.250  judge 0.750 [0.700, 0.800]  40 evaluations/s  00:41 left"


def test_in_a_terminal_progress_is_a_bar_with_the_same_figures():
    bar = follow(Terminal(), 40)
    assert "40/40 |################|" in bar
    assert "reward 0.250" in bar and "judge 0.750 [0.700, 0.800]" in bar and "40 evaluations/s" in bar
    assert "learning, 0 of 2 pictures" in bar
    assert bar.count("Warning: the reward is constant") == 1


def test_what_comes_before_the_first_update_is_said_from_the_first_second():
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.loading()
        for done in range(3):
            progress(Event("progress", {"phase": "prompts", "done": done, "total": 60}))
        progress(Event("progress", {"phase": "evaluation", "done": 0, "total": 32}))
    assert stream.getvalue().splitlines() == [
        "loading the model",
        "encoding prompts, 0 of 60",
        "evaluating, 0 of 32 pictures",
    ]
    terminal = Terminal()
    with Progress(terminal) as progress:
        progress.loading()
    assert "loading the model" in terminal.getvalue()


def test_lines_can_go_to_a_log():
    lines = []
    with Progress(say=lines.append) as progress:
        progress.loading()
    assert lines == ["loading the model"]


def test_progress_of_a_resumed_run_starts_where_it_stopped():
    assert follow(io.StringIO(), 40, first=30).splitlines()[0] == "going on from update 30 of 40"
    assert "30/40 |############    |" in follow(Terminal(), 40, first=30)


# --- tables ---


def test_tables_line_up():
    assert table([["a", "bb", "c"], ["aaa", "b"]]) == "a    bb  c\naaa  b"


def test_a_comparison_shows_pairs_and_skips_the_diversity_that_is_not_there():
    def found(*scores):
        return Evaluation(["a", "b"], [1, 2], {"judge": torch.tensor(scores)}, None, torch.zeros(0, 3, 4, 4))

    text = comparison(found(0.0, 1.0), found(0.5, 1.5), {"judge": "judge: x"})
    assert text.splitlines()[1].endswith("+0.500 [+0.500, +0.500]")
    assert "diversity" not in text
