"""Tests inside a real ComfyUI: they need COMFYUI_PATH and ComfyUI's own Python, and are skipped without.

COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/pytest tests/comfy
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]  # helpers of the tests; the engine


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Everything in this folder is marked comfy."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfy)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A base directory for ComfyUI with a tiny model in models/diffusers."""
    from comfy_process import comfyui
    from tiny_sd import write_tiny_sd

    comfyui()
    folder = tmp_path_factory.mktemp("comfy")
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    write_tiny_sd(folder / "models/diffusers/tiny")
    return folder


@pytest.fixture(scope="session")
def pack(base):
    """The pack, loaded in this process as ComfyUI loads it; its nodes by id."""
    from comfy_process import load_pack

    return load_pack(base)


@pytest.fixture
def run(pack):
    """run(node id, **inputs): execute a node as ComfyUI does, and return its outputs as a list."""
    from comfy_process import execute_in

    return execute_in(pack)


@pytest.fixture
def sockets_of(run):
    """model, prompts and reward for RLR Train."""
    (model,) = run("RLR_LoadCheckpoint", checkpoint="diffusers: tiny")
    (prompts,) = run("RLR_Prompts", text="a red circle\na blue square\na cat\na dog", held_out=0.5)
    (reward,) = run("RLR_Reward", reward="brightness")
    return {"model": model, "prompts": prompts, "reward": reward}
