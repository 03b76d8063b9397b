"""A run folder survives kills, full disks and people who point at the wrong place."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess

import pytest
import torch
from PIL import Image

from rlr_core.config import TrainConfig, load_config
from rlr_core.errors import UserError
from rlr_core.training import run_folder
from rlr_core.training.run_folder import RunFolder, read_metrics
from rlr_core.training.run_lock import LOCK, OWNER

CONFIG = TrainConfig(prompts=["a red circle"], steps=7)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.close()  # so that a test can be the next who writes
    return folder


def state_of(number):
    """A state whose every part tells its number, large enough to take several writes."""
    tensors = {"adapter.weight": torch.full((300, 100), float(number)), "rng": torch.arange(9) + number}
    return tensors, {"step": number, "mean": number / 3}


def assert_whole(state, number=None):
    tensors, values = state
    number = values["step"] if number is None else number
    expected_tensors, expected_values = state_of(number)
    assert values == expected_values
    assert set(tensors) == set(expected_tensors)
    assert all(torch.equal(tensors[name], expected_tensors[name]) for name in tensors)


# --- creating, opening, resuming ---


def test_a_created_folder_opens_with_the_same_config(folder):
    assert RunFolder.open(folder.path).config == CONFIG
    assert load_config(folder.path / "config.yaml") == CONFIG


@pytest.mark.parametrize("content", ["file", "run", "other"])
def test_create_refuses_to_overwrite(tmp_path, content):
    path = tmp_path / "run"
    if content == "file":
        path.write_text("precious")
    elif content == "run":
        RunFolder.create(path, CONFIG)
    else:
        path.mkdir()
        (path / "notes.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="--resume .*--out" if content == "run" else "--out"):
        RunFolder.create(path, CONFIG)
    assert sorted(tmp_path.rglob("*")) == before


def test_create_takes_an_empty_folder_and_one_of_a_run_killed_at_birth(tmp_path):
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", CONFIG)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".writing-config.yaml").write_text("mod")
    RunFolder.create(tmp_path / "killed", CONFIG)
    assert sorted(os.listdir(tmp_path / "killed")) == [LOCK, OWNER, "config.yaml"]


@pytest.mark.parametrize("kind", ["missing", "file", "plain folder"])
def test_open_refuses_what_is_no_run_folder(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("x")
    elif kind == "plain folder":
        path.mkdir()
    with pytest.raises(UserError, match="run folder"):
        RunFolder.open(path)


def test_resume_extends_a_run_and_keeps_the_new_config(folder):
    longer = TrainConfig(prompts=["a red circle"], steps=20)
    resumed = RunFolder.resume(folder.path, longer)
    assert resumed.config.steps == 20
    assert RunFolder.open(folder.path).config.steps == 20


def test_resume_names_the_settings_that_differ_and_changes_nothing(folder):
    other = TrainConfig(prompts=["a blue circle"], steps=20)
    other.lora.rank = 3
    with pytest.raises(UserError, match=r"other settings: prompts, lora\.rank\."):
        RunFolder.resume(folder.path, other)
    assert RunFolder.open(folder.path).config == CONFIG


# --- metrics ---


def test_metrics_come_back_in_order_with_numbers_intact(folder):
    rows = [
        {"step": i, "reward/mean": 0.1 * i, "judge/mean": None, "layers": [1, {"a": 2}]} for i in range(4)
    ]
    for row in rows:
        folder.append_metrics(row)
    assert folder.metrics() == rows == read_metrics(folder.path)


def test_metrics_are_strict_json_whatever_the_numbers(folder):
    folder.append_metrics(
        {
            "step": 1,
            "a": math.nan,
            "b": torch.tensor(0.5),
            "c": torch.tensor([1.0])[0].numpy(),
            "d": -math.inf,
        }
    )

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "a": None, "b": 0.5, "c": 1.0, "d": None}


@pytest.mark.parametrize("torn", ['{"step": 3, "rew', "\x00\x00\x00", '{"step": 3}garbage', "[3]"])
def test_a_torn_last_line_is_ignored_and_dropped_on_resume(folder, torn):
    for step in range(3):
        folder.append_metrics({"step": step})
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert [row["step"] for row in folder.metrics()] == [0, 1, 2]
    folder.truncate_metrics(1)
    folder.append_metrics({"step": 2, "again": True})
    assert (
        folder.path / "metrics.jsonl"
    ).read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2, "again": true}\n'


def test_truncating_rewrites_kept_lines_byte_for_byte(folder):
    for step in range(1, 40):
        folder.append_metrics({"step": step, "x": step / 7, "tiny": 1e-300 * step, "name": "é"})
    before = (folder.path / "metrics.jsonl").read_bytes()
    folder.truncate_metrics(1000)
    assert (folder.path / "metrics.jsonl").read_bytes() == before


def test_metrics_of_a_new_run_are_empty(folder):
    assert folder.metrics() == []
    folder.truncate_metrics(-1)
    assert folder.metrics() == []


# --- state ---


def test_a_state_comes_back_bit_for_bit(folder):
    assert folder.load_state() is None
    tensors = {
        "half": torch.randn(3, 4).half(),
        "bf16": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "bytes": torch.get_rng_state(),
        "turned": torch.randn(4, 6).t(),
        "nan": torch.tensor([math.nan, math.inf]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    tensors["shared"] = tensors["half"]
    values = {
        "step": 3,
        "seed": 2**63,
        "third": 1 / 3,
        "tiny": 5e-324,
        "none": None,
        "nested": {"a": [1, "é"]},
    }
    folder.save_state(tensors, values)
    loaded, loaded_values = folder.load_state()
    assert loaded_values == values
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].nan_to_num(9), tensor.detach().nan_to_num(9))


def test_a_state_can_be_written_while_an_older_one_is_in_use(folder):
    folder.save_state(*state_of(1))
    loaded = folder.load_state()
    folder.save_state(*state_of(2))
    assert_whole(loaded, 1)


@pytest.mark.parametrize("damage", ["truncated", "text", "no values"])
def test_a_damaged_state_is_named(folder, damage):
    folder.save_state(*state_of(1))
    path = folder.path / "state" / "state.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "text": b"not a state",
            "no values": data.replace(b"values", b"valuez"),
        }[damage]
    )
    with pytest.raises(UserError, match=r"state\.safetensors.*damaged"):
        folder.load_state()


# --- SIGKILL ---


def in_child(work):
    """Run `work` in a forked process; returns what it exited with, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_die(path, data):
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
    die()


@pytest.mark.parametrize(
    ("moment", "survives"),
    [("first byte", 1), ("half written", 1), ("flush", 1), ("rename", 1), ("after the rename", 2)],
)
def test_killed_while_a_state_is_written_a_whole_state_remains(folder, monkeypatch, moment, survives):
    folder.save_state(*state_of(1))

    def work():
        if moment == "first byte":
            monkeypatch.setattr(run_folder.Path, "write_bytes", die)
        elif moment == "half written":
            monkeypatch.setattr(run_folder.Path, "write_bytes", write_half_and_die)
        elif moment == "flush":
            monkeypatch.setattr(os, "fsync", die)
        elif moment == "rename":
            monkeypatch.setattr(os, "replace", die)
        else:
            replace = os.replace
            monkeypatch.setattr(os, "replace", lambda *names: (replace(*names), die()))
        folder.save_state(*state_of(2))

    assert in_child(work) == -signal.SIGKILL
    again = RunFolder.open(folder.path)
    assert_whole(again.load_state(), survives)
    assert os.listdir(folder.path / "state") == ["state.safetensors"]


@pytest.mark.slow
def test_killed_again_and_again_no_state_and_no_row_is_ever_lost(folder):
    """The child tells the numbers it has saved; the parent kills it in the midst of what comes next."""
    folder.save_state(*state_of(0))
    for attempt in range(25):
        first = RunFolder.open(folder.path).load_state()[1]["step"]
        reader, writer = os.pipe()

        def work(first=first, writer=writer):
            for number in range(first + 1, first + 10_000):
                folder.append_metrics({"step": number, "filler": "x" * 200})
                folder.save_state(*state_of(number))
                os.write(writer, b"%d\n" % number)

        child = os.fork()
        if child == 0:
            work()
        os.close(writer)
        told = b""
        while told.count(b"\n") < 1 + attempt % 3:
            told += os.read(reader, 64)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        while rest := os.read(reader, 4096):
            told += rest
        os.close(reader)
        last_told = int(told.split()[-1])

        again = RunFolder.open(folder.path)
        state = again.load_state()
        assert_whole(state)
        step = state[1]["step"]
        assert step in (last_told, last_told + 1)
        again.truncate_metrics(step)
        assert [row["step"] for row in again.metrics()] == list(range(1, step + 1))
        assert not list(folder.path.rglob(".writing-*"))


# --- disks that refuse ---


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB; only root may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_a_sentence_and_the_last_state_stays_whole(small_disk):
    folder = RunFolder.create(small_disk / "run", CONFIG)
    folder.save_state(*state_of(1))
    folder.append_metrics({"step": 1})
    with pytest.raises(
        UserError, match=r"disk is full: '.*state\.safetensors'.*last saved state is whole.*--resume"
    ):
        for number in range(2, 20):
            (folder.path / f"ballast{number}").write_bytes(bytes(20_000))
            folder.save_state(*state_of(number))
    with pytest.raises(UserError, match=r"disk is full: '.*before\.png'"):
        folder.save_image("before.png", torch.rand(3, 400, 400))
    again = RunFolder.open(folder.path)
    assert_whole(again.load_state())
    assert not list(small_disk.rglob(".writing-*"))
    with pytest.raises(UserError, match=r"disk is full: '.*metrics\.jsonl'"):
        for step in range(2, 10_000):
            again.append_metrics({"step": step, "filler": "x" * 500})
    assert (again.path / "metrics.jsonl").read_bytes().endswith(b"\n")  # no torn line stays behind
    assert [row["step"] for row in again.metrics()] == list(range(1, step))


def test_a_disk_that_is_full_from_the_start_says_so(small_disk):
    (small_disk / "ballast").write_bytes(bytes(240_000))
    with pytest.raises(UserError, match="disk is full.*start again"):
        for number in range(100):
            RunFolder.create(small_disk / f"run{number}", CONFIG)


def test_a_file_that_may_not_grow_is_a_sentence_and_the_last_state_stays_whole(folder):
    folder.save_state(*state_of(1))

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(UserError, match="Cannot write .*File too large.*last saved state is whole"):
            folder.save_state(*state_of(2))

    assert in_child(work) == 0
    assert_whole(folder.load_state(), 1)
    assert os.listdir(folder.path / "state") == ["state.safetensors"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_metrics_on_a_full_device_are_a_sentence(folder):
    (folder.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"disk is full: '.*metrics\.jsonl'.*No state had been saved"):
        folder.append_metrics({"step": 1})


def test_a_folder_where_a_folder_cannot_be_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Cannot write"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG)


# --- pictures and other files ---


def test_samples_are_grids_and_pictures_are_exact(folder):
    images = torch.zeros(5, 3, 64, 64)
    images[:, 0] = 1
    path = folder.save_samples(10, images, columns=3)
    assert path == folder.path / "samples" / "step_000010.png"
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 132 + 4, 2 * 132 + 4)  # enlarged to 128, four white pixels between
        assert sheet.getpixel((10, 10)) == (255, 0, 0)
    with Image.open(folder.save_image("a.png", torch.full((3, 8, 8), 0.5))) as picture:
        assert picture.getpixel((0, 0)) == (128, 128, 128)


def test_what_fails_while_replacing_a_file_leaves_the_old_one(folder):
    folder.write_text("notes.txt", "old")
    with pytest.raises(RuntimeError, match="lost"), folder.replacing("notes.txt") as path:
        path.write_text("new")
        raise RuntimeError("lost")
    assert (folder.path / "notes.txt").read_text() == "old"
    assert not list(folder.path.rglob(".writing-*"))
