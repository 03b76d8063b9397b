"""No circle among the engine's files, and no import that runs up from one room to another."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "rlr_core"
ROOMS = (
    ("errors",),
    ("common",),
    ("config",),
    ("diffusion",),
    ("lora",),
    ("gradients",),
    ("methods", "rewards"),
    ("correction", "evaluation"),
    ("training",),
    ("demo",),
    ("benchmarks",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: a room may import those on earlier lines. Names in tables, imported on first use, are
no arrows: that is how a reward of the demo gets into the table of rewards."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ENGINE.rglob("*.py"))}


def imports_of(module: str, only_on_load: bool = False) -> set[str]:
    """Modules of the engine that a module imports; those for type checkers alone are left out.

    only_on_load: without those inside functions.
    """
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    imported = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if only_on_load and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlr_core"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                imported.add(full if full in MODULES else node.module)
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names if alias.name in MODULES)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return imported & MODULES.keys() - {module, "rlr_core"}


def test_no_circle_among_files():
    graph = {module: imports_of(module, only_on_load=True) for module in MODULES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")
    assert set(order) >= {"rlr_core.training.trainer", "rlr_core.methods.adaptive"}


def test_every_file_lies_in_a_room():
    rooms = {module.split(".")[1] for module in MODULES if "." in module}
    assert rooms == LEVEL.keys()


def test_no_import_runs_upwards():
    upwards = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports_of(module)
        if "." in module and LEVEL[module.split(".")[1]] < LEVEL[other.split(".")[1]]
    ]
    assert not upwards, "\n".join(upwards)


def test_the_engine_knows_nothing_of_the_nodes_or_of_comfyui():
    forbidden = {"nodes", "comfy", "comfy_api", "folder_paths", "server"}
    for path in ENGINE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & forbidden, path


def test_nothing_outside_the_methods_switches_on_a_methods_name():
    """What a method needs is asked of it, not looked up by its name."""
    from rlr_core.methods import METHODS

    for module, path in MODULES.items():
        room = (module.split(".") + [""])[1]
        if room not in ("training", "gradients", "evaluation"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not constants & METHODS.keys(), f"{path}:{node.lineno}"
