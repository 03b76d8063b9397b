"""Trackers get what metrics.jsonl gets; none is there unless asked for."""

from __future__ import annotations

import accelerate.tracking
import pytest
from runs import redness, rows, small_config
from tiny_flow import TinyFlow

from rlr_core.config import config_from_dict
from rlr_core.errors import UserError
from rlr_core.training import trackers
from rlr_core.training.trainer import train


class Board:
    """Stands in for accelerate's TensorBoardTracker where tensorboard is not installed."""

    logged: list[tuple[int, dict]] = []

    def __init__(self, run_name, logging_dir):
        self.run_name, self.logging_dir, self.open = run_name, logging_dir, False

    def start(self):
        self.open = True

    def log(self, values, step):
        assert self.open
        self.logged.append((step, values))

    def finish(self):
        self.open = False


def test_a_tracker_gets_every_number_of_every_row(tmp_path, monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Board)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(Board, "logged", [])
    settings = small_config(tmp_path / "run", steps=2, tracker="tensorboard")
    train(TinyFlow(), redness, config_from_dict(settings))
    written = rows(tmp_path / "run")
    assert [step for step, _ in Board.logged] == [row["step"] for row in written] == [0, 1, 2]
    for (_, values), row in zip(Board.logged, written, strict=True):
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        assert numbers.items() - {("step", row["step"])} <= values.items()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    settings = small_config(tmp_path / "run", tracker="wandb")
    with pytest.raises(UserError, match="tracker is 'wandb' and the package is not installed: pip install"):
        train(TinyFlow(), redness, config_from_dict(settings))
    assert not (tmp_path / "run").exists()
