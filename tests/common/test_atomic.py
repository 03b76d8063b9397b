"""Files are whole or not there, and every file of a run has one writer."""

from __future__ import annotations

import os

import pytest
from runs import redness, small_config
from tiny_flow import TinyFlow

from rlr_core.common.atomic import TEMPORARY, remove_temporaries, replacing
from rlr_core.config import config_from_dict
from rlr_core.errors import UserError
from rlr_core.training.trainer import train


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(target) as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_a_full_disk_is_one_sentence_with_a_way_out(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.raises(UserError, match="The disk is full: .*could not be written. Buy another."),
        replacing(tmp_path / "file", "Buy another.") as path,
    ):
        path.write_text("new")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_process_are_cleared(tmp_path):
    (tmp_path / f"{TEMPORARY}state").write_text("half")
    (tmp_path / "state").write_text("whole")
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_no_file_of_a_run_is_written_by_a_writer_inside_another(tmp_path, monkeypatch):
    """The LoRA was once, and a kill left .writing-.writing-lora.safetensors behind for good."""
    moved = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda old, new: (moved.append(os.path.basename(old)), replace(old, new))
    )
    train(TinyFlow(), redness, config_from_dict(small_config(tmp_path / "run", steps=1)))
    assert f"{TEMPORARY}lora.safetensors" in moved
    assert all(name.count(TEMPORARY) == 1 for name in moved)
