"""A killed run that goes on is bit-equal to one that never stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import torch
from marks import quick
from runs import redness, rows, run, small_config, weights
from tiny_models import load_tiny

from rlr_core.common import atomic
from rlr_core.config import config_from_dict
from rlr_core.errors import UserError
from rlr_core.training import run_folder
from rlr_core.training.trainer import train

fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    run(small_config(out))
    return out


def same(out, unbroken) -> bool:
    assert rows(out) == rows(unbroken)
    return (out / "lora.safetensors").read_bytes() == (unbroken / "lora.safetensors").read_bytes()


def in_child(work) -> int:
    """Exit code of `work()` in a forked process; -9 when it was killed."""
    child = fork.Process(target=work)
    child.start()
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_event(settings, kind, count, resume):
    """Run until the `count`-th event of a kind after the start, and die there."""
    seen, started = 0, False

    def on_event(event):
        nonlocal seen, started
        started = started or event.kind == "start"
        seen += started and event.kind == kind
        if seen == count:
            die()

    return lambda: run(settings, resume=resume, on_event=on_event)


@pytest.mark.parametrize(
    "kind, count",
    quick([("update", 1), ("update", 4), ("progress", 1), ("progress", 17)], ("progress", 1)),
)
def test_killed_run_goes_on_bit_equal(kind, count, tmp_path, unbroken):
    settings = small_config(tmp_path / "run")
    assert in_child(killed_at_event(settings, kind, count, resume=False)) == -signal.SIGKILL
    run(settings, resume=True)
    assert same(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("moment", quick([1, 2, 3, 4, 6, 9], 4))
def test_killed_while_files_are_written_goes_on_bit_equal(moment, tmp_path, unbroken):
    """Dies at the n-th flush: before a temporary file takes its name, or right after."""
    settings = small_config(tmp_path / "run", save_every=1)

    def work():
        flush, count = atomic._flush, 0

        def dying(path):
            nonlocal count
            flush(path)
            if path.parent.name == "state" or path.name == "state":
                count += 1
                if count == moment:
                    die()

        atomic._flush = dying
        run(settings)

    assert in_child(work) == -signal.SIGKILL
    run(settings, resume=True)
    assert same(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_killed_again_and_again_goes_on_bit_equal(tmp_path, unbroken):
    settings = small_config(tmp_path / "run")
    kills, resume = 0, False
    for count in (9, 12, 15, 18, 21):
        code = in_child(killed_at_event(settings, "progress", count, resume))
        kills += code == -signal.SIGKILL
        resume = True
    run(settings, resume=True)
    assert kills >= 3
    assert same(tmp_path / "run", unbroken)


def ctrl_c_at(count):
    """Ctrl-C at the count-th piece of work, in the middle of an update."""
    seen = 0

    def on_event(event):
        nonlocal seen
        seen += event.kind == "progress" and event.data["phase"] in ("rollout", "backward")
        if seen == count:
            raise KeyboardInterrupt

    return on_event


@pytest.mark.parametrize("method", quick(["ddpo", "rlr", "likelihood_ratio"], "ddpo"))
def test_interrupted_run_keeps_its_last_whole_update_and_goes_on_bit_equal(method, tmp_path):
    """Ctrl-C in the middle of an update, inner epochs and perturbed weights included."""
    whole = small_config(tmp_path / "whole", method={"name": method}, save_every=100)
    run(whole)
    settings = small_config(tmp_path / "broken", method={"name": method}, save_every=100)
    with pytest.raises(KeyboardInterrupt):
        run(settings, on_event=ctrl_c_at(17))
    assert (tmp_path / "broken" / "state" / "state.safetensors").exists()
    run(settings, resume=True)
    assert same(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adaptive", "rlr"])
def test_interrupted_run_that_trains_the_text_encoder_goes_on_bit_equal(method, tiny_sd_folder, tmp_path):
    def train_sd(out, resume=False, on_event=None):
        settings = small_config(tmp_path / out, method={"name": method}, steps=4, lora={"text_encoder": True})
        model = load_tiny("stable-diffusion", tiny_sd_folder)
        config = config_from_dict(settings)
        return train(model, redness, config, resume=resume, on_event=on_event)

    train_sd("whole")
    with pytest.raises(KeyboardInterrupt):
        train_sd("broken", on_event=ctrl_c_at(17))
    train_sd("broken", resume=True)
    assert same(tmp_path / "broken", tmp_path / "whole")
    text = [tensor for name, tensor in weights(tmp_path / "broken").items() if name.startswith("lora_te_")]
    assert text and all(tensor.any() for tensor in text)


def test_ctrl_c_ends_the_run_with_everything_saved(tmp_path):
    settings = small_config(tmp_path / "run", steps=1000, save_every=1000)

    def on_event(event):
        if event.kind == "update" and event.data["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(settings, on_event=on_event)
    folder = run_folder.RunFolder.open(tmp_path / "run")
    assert folder.load_state()[1]["step"] == 3
    assert folder.metrics()[-1]["step"] == 3


@pytest.mark.slow
def test_more_steps_extend_a_finished_run_as_if_planned(tmp_path, unbroken):
    run(small_config(tmp_path / "run", steps=4))
    run(small_config(tmp_path / "run", steps=6), resume=True)
    ours, theirs = weights(tmp_path / "run"), weights(unbroken)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_state_of_other_settings_is_refused_by_name_and_kept(tmp_path):
    run(small_config(tmp_path / "run", steps=2))
    before = (tmp_path / "run/state/state.safetensors").read_bytes()
    with pytest.raises(UserError, match="optimizer.learning_rate"):
        run(small_config(tmp_path / "run", optimizer={"learning_rate": 0.5}), resume=True)
    assert (tmp_path / "run/state/state.safetensors").read_bytes() == before


def test_existing_run_is_not_overwritten(tmp_path):
    run(small_config(tmp_path / "run", steps=2))
    before = rows(tmp_path / "run")
    with pytest.raises(UserError, match="--resume"):
        run(small_config(tmp_path / "run", steps=2))
    assert rows(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "likelihood_ratio", "rlr"])
def test_micro_batches_do_not_change_the_run(method, tmp_path):
    run(small_config(tmp_path / "whole", method={"name": method}, micro_batch=8, decode_batch=8))
    run(small_config(tmp_path / "pieces", method={"name": method}, micro_batch=3, decode_batch=1))
    ours, theirs = weights(tmp_path / "pieces"), weights(tmp_path / "whole")
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=2e-4), name
    assert (
        config_from_dict(small_config(tmp_path)).fingerprint()
        == config_from_dict(small_config(tmp_path, micro_batch=8)).fingerprint()
    )
