"""One run folder has one writer, and what a run goes on from is what it was saved as."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from runs import redness, run, small_config
from tiny_flow import TinyFlow

from rlr_core.config import TrainConfig, config_from_dict
from rlr_core.errors import UserError
from rlr_core.training.run_folder import RunFolder
from rlr_core.training.trainer import train

CONFIG = TrainConfig(prompts=["a"], steps=3)
HOLDER = """
import sys, time
from rlr_core.config import TrainConfig
from rlr_core.training.run_folder import RunFolder
folder = RunFolder.create(sys.argv[1], TrainConfig(prompts=["a"], steps=3))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_writer_is_told_who_has_the_folder(tmp_path, holder):
    with pytest.raises(UserError, match=rf"is being written by process {holder.pid} on .*--out"):
        RunFolder.resume(tmp_path / "run", CONFIG)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    RunFolder.resume(tmp_path / "run", CONFIG).close()  # a killed run leaves nothing that stands in the way


def test_in_one_process_too_and_closing_lets_others_write(tmp_path):
    first = RunFolder.create(tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="is being written by this process"):
        RunFolder.resume(tmp_path / "run", CONFIG)
    first.close()
    RunFolder.resume(tmp_path / "run", CONFIG).close()


def test_a_refused_resume_keeps_nobody_out(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG).close()
    with pytest.raises(UserError, match="other settings"):
        RunFolder.resume(tmp_path / "run", CONFIG.replace(seed=5))
    RunFolder.resume(tmp_path / "run", CONFIG).close()


def test_a_run_that_ends_or_raises_lets_go_of_its_folder(tmp_path):
    class Stop(Exception):
        pass

    def stop(event):
        if event.kind == "update":
            raise Stop

    with pytest.raises(Stop):
        run(small_config(tmp_path / "run"), on_event=stop)
    run(small_config(tmp_path / "run"), resume=True)
    RunFolder.resume(tmp_path / "run", RunFolder.open(tmp_path / "run").config).close()


def test_settings_that_were_edited_after_the_state_was_saved_are_named(tmp_path):
    run(small_config(tmp_path / "run", steps=2))
    path = tmp_path / "run" / "config.yaml"
    data = yaml.safe_load(path.read_text())
    data["lora"]["alpha"], data["optimizer"]["beta1"] = 7.0, 0.5
    path.write_text(yaml.safe_dump(data))
    edited = config_from_dict(data)
    with pytest.raises(UserError, match=r"were changed after .* lora\.alpha, optimizer\.beta1\. Put"):
        train(TinyFlow(), redness, edited, resume=True)


def test_a_folder_that_is_removed_meanwhile_ends_the_run_with_a_sentence(tmp_path):
    def remove(event):
        if event.kind == "update":
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(UserError, match=r"run'? was removed or moved while its run was writing"):
        run(small_config(tmp_path / "run"), on_event=remove)


def test_lines_of_the_metrics_that_are_no_rows_are_left_out(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.append_metrics({"step": 1})
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": null}\n{"step": "2"}\n[1]\n{"step": true}\n' + b"[" * 100_000 + b"\n\xff\n")
    folder.append_metrics({"step": 2})
    assert [row["step"] for row in folder.metrics()] == [1, 2]
