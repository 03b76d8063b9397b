"""Whatever is in a file, it is read or refused in one sentence; the model is left as it was."""

from __future__ import annotations

import copy
import os
import random
import shutil

import pytest
import torch
from damage import damaged
from runs import redness, run, small_config
from tiny_flow import TinyFlow

from rlr_core.common.weights import kind, read_header
from rlr_core.config import config_from_dict
from rlr_core.errors import UserError
from rlr_core.lora import apply_lora
from rlr_core.training.results import read_results
from rlr_core.training.trainer import train

COUNT = [pytest.param(140, id="140"), pytest.param(2500, id="2500", marks=pytest.mark.big)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder of two updates, and its files."""
    out = tmp_path_factory.mktemp("damage") / "run"
    run(small_config(out, steps=2))
    return out


def survives(action, what: str) -> bool:
    """Whether it went well; anything but a UserError of one line is a failure."""
    try:
        action()
    except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 1500, what
        return False
    return True


@pytest.mark.parametrize("count", COUNT)
def test_damaged_headers(count, finished, tmp_path):
    data = (finished / "lora.safetensors").read_bytes()
    for number, content in enumerate(damaged(data, count, seed=1)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        survives(lambda path=path: (read_header(path), kind(path)), f"case {number}")
        os.remove(path)


@pytest.mark.parametrize("count", COUNT)
def test_damaged_loras(count, finished, tmp_path):
    data = (finished / "lora.safetensors").read_bytes()
    model, whole = TinyFlow(), 0
    for number, content in enumerate(damaged(data, count, seed=2)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        if survives(lambda path=path: apply_lora(model, path), f"case {number}"):
            whole += 1
            model.eject()
        assert not model.has_adapter(), f"case {number}"
        os.remove(path)
    assert whole < count  # otherwise nothing was damaged


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNT)
def test_damaged_states(count, finished, tmp_path):
    """A state that loads all the same goes on; most are refused."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    state = out / "state" / "state.safetensors"
    data = state.read_bytes()
    config = read_results(out).config.replace(out=str(out))
    model, whole = TinyFlow(), 0
    network = model.networks["transformer"]
    before = copy.deepcopy(network.state_dict())
    for number, content in enumerate(damaged(data, count, seed=3)):
        state.write_bytes(content)
        whole += survives(lambda: train(model, redness, config, resume=True), f"case {number}")
        if model.has_adapter():
            model.eject()
    assert 0 < whole < count
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("count", COUNT)
def test_damaged_run_folders(count, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    random_ = random.Random(4)
    for number in range(count):
        for name in ("metrics.jsonl", "config.yaml", "lora.safetensors"):
            content = bytearray((finished / name).read_bytes())
            for _ in range(random_.choice([0, 1, 20])):
                content[random_.randrange(len(content))] = random_.randrange(256)
            kept = random_.randrange(len(content)) if random_.random() < 0.3 else len(content)
            (out / name).write_bytes(bytes(content[:kept]))
        survives(lambda: read_results(out).summary(), f"case {number}")


def test_a_device_or_a_pipe_is_no_prompt_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(UserError, match="is not an ordinary file"):
            train(TinyFlow(), redness, config_from_dict(small_config(tmp_path / "run", prompts=path)))


def test_a_prompt_file_of_no_sensible_size_is_refused_unread(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"a cat\n" * 2_000_000)
    config = small_config(tmp_path / "run", prompts=str(tmp_path / "p.txt"))
    with pytest.raises(UserError, match="too large to be a prompt file: 12,000,000 bytes"):
        train(TinyFlow(), redness, config_from_dict(config))
