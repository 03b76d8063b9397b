"""Tests inside a real ComfyUI: they need COMFYUI_PATH and ComfyUI's own Python, and are skipped without.

COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/pytest tests/comfy
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = os.environ.get("COMFYUI_PATH")
HOW = (
    "set COMFYUI_PATH to a ComfyUI of 0.3.64 or newer and run pytest with the Python that ComfyUI uses, "
    "after `pip install -r requirements.txt pytest` there"
)
sys.path.insert(0, str(ROOT / "tests"))


def comfyui() -> Path:
    """The ComfyUI to test in; skips where there is none."""
    if not COMFYUI or not Path(COMFYUI, "main.py").is_file():
        pytest.skip(HOW)
    if importlib.util.find_spec("torchsde") is None:
        pytest.skip(f"this Python cannot run ComfyUI: {HOW}")
    return Path(COMFYUI)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A base directory for ComfyUI with a tiny model in models/diffusers."""
    folder = tmp_path_factory.mktemp("comfy")
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    from tiny_sd import write_tiny_sd

    write_tiny_sd(folder / "models/diffusers/tiny")
    return folder


@pytest.fixture(scope="session")
def pack(base):
    """The pack, loaded in this process as ComfyUI loads it; its nodes by id."""
    path = comfyui()
    sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(base)
    import utils.extra_config  # noqa: F401 - early, as in main.py: comfy/ has a utils of its own

    module_name = "custom_nodes_ComfyUI-RLR"
    spec = importlib.util.spec_from_file_location(
        module_name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)

    import folder_paths

    extension = asyncio.run(module.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    assert Path(folder_paths.get_output_directory()).is_relative_to(base)
    return {node.GET_SCHEMA().node_id: node for node in nodes}


@pytest.fixture
def run(pack):
    """run(node id, **inputs): execute a node as ComfyUI does, and return its outputs as a list."""

    import torch

    def execute(node_id: str, **inputs):
        node = pack[node_id].PREPARE_CLASS_CLONE(_hidden())
        with torch.inference_mode():
            return list(node.EXECUTE_NORMALIZED(**inputs).args)

    return execute


def _hidden():
    """What a node is told of its place in the workflow, in either version's form."""
    from comfy_api.latest import io

    values = {io.Hidden.unique_id: "5", io.Hidden.extra_pnginfo: {"workflow": {"id": "w"}}}
    if hasattr(io.HiddenHolder, "from_v3_data"):
        return {"hidden_inputs": values}
    return values
