"""Fixtures of the tests of the native family: the pack's modules, and tiny models by name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def native(pack) -> ModuleType:
    """nodes/native/model.py, as the pack imports it."""
    from comfy_process import MODULE

    return importlib.import_module(f"{MODULE}.nodes.native.model")


@pytest.fixture(scope="session")
def part(pack):
    """part(name): another module of nodes/native."""
    from comfy_process import MODULE

    return lambda name: importlib.import_module(f"{MODULE}.nodes.native.{name}")


@pytest.fixture
def build(pack):
    """build(name, **dtypes): the sockets of a tiny model; skips where there is no such architecture."""
    import native_models

    def make(name: str, **dtypes) -> native_models.Sockets:
        if not native_models.available(name):
            pytest.skip(f"this ComfyUI has no {name}")
        return native_models.build(name, **dtypes)

    return make
