"""Shared by the tests: one torch thread, and the small models."""

from __future__ import annotations

import pytest
import torch
from command_line import train
from tiny_models import TINY, load_tiny

torch.set_num_threads(1)
ON_REQUEST = ("big", "browser")  # marks of tests that need a machine to themselves


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leave out the tests that run on request only, unless -m speaks of their mark."""
    unasked = [mark for mark in ON_REQUEST if mark not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in unasked)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory):
    """A Stable Diffusion folder with tiny random networks."""
    from tiny_sd import write_tiny_sd

    return write_tiny_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(params=TINY)
def tiny_model(request, tiny_sd_folder):
    """A fresh tiny model of each kind."""
    return load_tiny(request.param, tiny_sd_folder)


@pytest.fixture
def sd(tiny_sd_folder):
    """A fresh tiny Stable Diffusion."""
    return load_tiny("stable-diffusion", tiny_sd_folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a prompt file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a cat above a dog \na blue square\n")
    return tmp_path


@pytest.fixture
def rlr(capsys):
    """Run a command; returns exit code, stdout and stderr."""
    from rlr_core.cli import main as cli

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_folder(here, tiny_sd_folder, rlr):
    """A finished run of two updates."""
    code, *_ = rlr(*train(tiny_sd_folder), "--steps", 2, "--out", "run")
    assert code == 0
    return here / "run"
