"""ComfyUI in this very process: which one, the pack loaded into it, and its nodes executed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = "custom_nodes_ComfyUI-RLR"
"""What the pack is called in sys.modules here."""
HOW = (
    "set COMFYUI_PATH to a ComfyUI of 0.3.64 or newer and run pytest with the Python that ComfyUI uses, "
    "after `pip install -r requirements.txt pytest` there"
)


def comfyui() -> Path:
    """The ComfyUI to test in; skips where there is none."""
    path = Path(os.environ.get("COMFYUI_PATH", "")).expanduser()
    if not path.is_absolute() or not (path / "main.py").is_file():
        pytest.skip(HOW)
    if importlib.util.find_spec("torchsde") is None:
        pytest.skip(f"this Python cannot run ComfyUI: {HOW}")
    return path


class Pack(dict):
    """Nodes by id, and what it took to load them."""

    import_seconds: float
    """Processor time."""
    imported: set[str]
    """Packages that were not imported before."""


def load_pack(base: Path, cpu: bool = True) -> Pack:
    """Import ComfyUI with `base` as its base directory, then the pack, as ComfyUI does it.

    cpu: on the CPU whatever there is.
    """
    sys.path.insert(0, str(comfyui()))
    from comfy.cli_args import args

    args.cpu, args.base_directory = cpu, str(base)
    import utils.extra_config  # noqa: F401, I001 - early, as in main.py: comfy/ has a utils of its own

    import folder_paths
    import nodes  # noqa: F401 - all that ComfyUI has imported when it comes to custom nodes
    import server  # noqa: F401
    from comfy_api.latest import io  # noqa: F401

    before, started = set(sys.modules), time.process_time()
    spec = importlib.util.spec_from_file_location(
        MODULE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    ours = asyncio.run(extension.get_node_list())
    pack = Pack((node.GET_SCHEMA().node_id, node) for node in ours)
    pack.import_seconds = time.process_time() - started
    pack.imported = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert Path(folder_paths.get_output_directory()).is_relative_to(base)
    return pack


def execute_in(pack: Pack) -> Callable[..., list]:
    """execute(node id, **inputs): run a node as ComfyUI does, and return its outputs as a list.

    Inputs of RLR Train that are RLR Train Settings' go through such a node.
    """
    further = {i.id for i in pack["RLR_TrainSettings"].GET_SCHEMA().inputs}

    def execute(node_id: str, **inputs):
        own = {name: inputs.pop(name) for name in further & inputs.keys() if node_id == "RLR_Train"}
        if own:
            (inputs["settings"],) = execute("RLR_TrainSettings", **own)
        return list(output_of(pack, node_id, **inputs).args)

    return execute


def output_of(pack: Pack, node_id: str, **inputs):
    """All that a node gives, with what it shows."""
    import torch

    node = pack[node_id].PREPARE_CLASS_CLONE(hidden_of("5"))
    with torch.inference_mode():
        return node.EXECUTE_NORMALIZED(**inputs)


def hidden_of(number: str) -> dict:
    """What node `number` is told of its place in the workflow, in either version's form."""
    from comfy_api.latest import io

    values = {io.Hidden.unique_id: number, io.Hidden.extra_pnginfo: {"workflow": {"id": "w"}}}
    return {"hidden_inputs": values} if hasattr(io.HiddenHolder, "from_v3_data") else values
