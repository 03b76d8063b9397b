"""Workflow files against the nodes' definitions and the golden API files; no ComfyUI needed.

definitions.json holds what a server's /object_info says about the nodes that the workflows use; a test in
test_server.py keeps it true.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
DEFINITIONS = json.loads((HERE / "definitions.json").read_text(encoding="utf-8"))
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def widgets(definition: dict) -> list[str]:
    """Names of a node's widgets in order; one more for what follows a seed."""
    names = []
    for name, kind, extra in definition["inputs"]:
        if kind in WIDGETS:
            names.append(name)
            if extra.get("control_after_generate"):
                names.append("control_after_generate")
    return names


def parts(path: Path) -> tuple[dict, dict, dict]:
    """Nodes by id (without notes), links by id, and the golden API workflow."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] != "MarkdownNote"}
    links = {link[0]: link for link in workflow["links"]}
    golden = json.loads((HERE / "golden" / path.name).read_text(encoding="utf-8"))
    return nodes, links, golden


def test_every_workflow_has_its_golden_file_and_picture():
    assert [path.stem for path in WORKFLOWS] == [
        "rlr-compare-methods", "rlr-dcot", "rlr-demo", "rlr-first-lora", "rlr-flux2-klein",
        "rlr-qwen-image", "rlr-rate", "rlr-readable-text", "rlr-score-and-pick", "rlr-sd15-aesthetic",
        "rlr-sdxl", "rlr-wan-video", "rlr-z-image-turbo",
    ]  # fmt: skip
    for path in WORKFLOWS:
        assert (HERE / "golden" / path.name).is_file()
        assert path.with_suffix(".jpg").is_file(), "make_pictures.py makes it"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_widgets_and_links_fit_the_definitions(path):
    nodes, links, _ = parts(path)
    assert json.loads(path.read_text(encoding="utf-8"))["version"] == 0.4
    for node in nodes.values():
        definition = DEFINITIONS[node["type"]]
        assert len(node.get("widgets_values") or []) == len(widgets(definition)), node["type"]
        kinds = {name: kind for name, kind, _ in definition["inputs"]}
        for socket in node["inputs"]:
            assert socket["type"] == kinds[socket["name"]], (node["type"], socket)
            if socket.get("link") is not None:
                _, source, slot, target, _, kind = links[socket["link"]]
                assert target == node["id"] and kind == socket["type"]
                assert DEFINITIONS[nodes[source]["type"]]["outputs"][slot] == kind
                assert socket["link"] in nodes[source]["outputs"][slot]["links"]
    for number, source, _, target, _, _ in links.values():
        assert source in nodes and any(socket.get("link") == number for socket in nodes[target]["inputs"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_says_what_its_golden_file_says(path):
    nodes, links, golden = parts(path)
    assert {str(number): node["type"] for number, node in nodes.items()} == {
        number: node["class_type"] for number, node in golden.items()
    }
    for number, node in nodes.items():
        expected = golden[str(number)]["inputs"]
        said = dict(zip(widgets(DEFINITIONS[node["type"]]), node.get("widgets_values") or [], strict=True))
        said.pop("control_after_generate", None)
        for socket in node["inputs"]:
            if socket.get("link") is not None:
                _, source, slot, *_ = links[socket["link"]]
                said[socket["name"]] = [str(source), slot]
        assert said == expected


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_golden_files_give_every_required_input_and_no_other(path):
    *_, golden = parts(path)
    for node in golden.values():
        definition = DEFINITIONS[node["class_type"]]
        known = [name for name, _, _ in definition["inputs"]]
        assert set(definition["required"]) <= set(node["inputs"]) <= set(known)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_only_missing_links_are_null(path):
    """Old frontends show an alert over the graph for any other null."""

    def nulls(value, at=()):
        if isinstance(value, dict):
            return [found for key, part in value.items() for found in nulls(part, (*at, key))]
        if isinstance(value, list):
            return [found for part in value for found in nulls(part, at)]
        return [] if value is not None else [at]

    found = nulls(json.loads(path.read_text(encoding="utf-8")))
    assert {at[-1] for at in found} <= {"link", "links"}, found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_node_lies_on_another(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    title = 30
    for i, (x, y, w, h) in enumerate(boxes):
        for left, top, wide, high in boxes[:i]:
            apart = x >= left + wide or left >= x + w or y - title >= top + high or top - title >= y + h
            assert apart, (workflow["nodes"][i]["type"], (x, y), (left, top))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_readable_on_a_small_screen(path):
    """The page fits what it opens into three quarters of itself, and draws no text below about 0.6."""
    from make_workflows import bounds

    *_, wide, high = bounds(json.loads(path.read_text(encoding="utf-8")))
    assert min(0.75 * 1366 / wide, 0.73 * 768 / high) > 0.605


def test_seeds_stay_what_they_are():
    """A seed that changes by itself would start a new run at every queueing."""
    for path in WORKFLOWS:
        nodes, *_ = parts(path)
        for node in nodes.values():
            for name, value in zip(
                widgets(DEFINITIONS[node["type"]]), node.get("widgets_values") or [], strict=True
            ):
                assert name != "control_after_generate" or value == "fixed"


# --- the pack without ComfyUI ---


def test_the_pack_imports_where_there_is_no_comfyui(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "comfy_api" else find(name, *rest)
    )
    spec = importlib.util.spec_from_file_location(
        "pack_alone", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pack_alone", module)
    spec.loader.exec_module(module)
    assert not hasattr(module, "comfy_entrypoint")


def test_every_node_has_a_help_page_that_names_its_inputs():
    ours = {name: what for name, what in DEFINITIONS.items() if name.startswith("RLR_")}
    assert len(ours) == 18
    for name, definition in ours.items():
        page = (ROOT / "nodes/web/docs" / f"{name}.md").read_text(encoding="utf-8")
        for input_name, *_ in definition["inputs"]:
            stem = input_name.rstrip("_0123456789")
            assert stem in page or definition["advanced"].get(input_name), (name, input_name)


def test_tables_of_inputs_in_help_pages_say_what_the_tooltips_say():
    """`make_workflows.py` writes them."""
    from make_workflows import INPUTS, with_inputs

    texts = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "nodes/web/docs").glob("*.md")}
    written = {name for name, page in pages.items() if INPUTS.search(page)}
    assert written == {
        "RLR_Train",
        "RLR_Method",
        "RLR_Sample",
        "RLR_Rate",
        "RLR_Preferences",
        "RLR_TrainSettings",
        "RLR_Compare",
        "RLR_Runs",
    }
    for name in written:
        assert pages[name] == with_inputs(pages[name], texts[name]), name
        assert all(f"| {key} | " in pages[name] for key in texts[name]["inputs"])


def test_only_one_folder_holds_templates():
    """Of several folders ComfyUI lists all names and serves the first one's files."""
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (ROOT / name).is_dir()] == ["workflows"]


def test_locales_name_every_node_and_input():
    ours = {name: what for name, what in DEFINITIONS.items() if name.startswith("RLR_")}
    for path in (ROOT / "locales").glob("*/nodeDefs.json"):
        texts = json.loads(path.read_text(encoding="utf-8"))
        assert texts.keys() == ours.keys(), path
        for name, definition in ours.items():
            assert texts[name]["inputs"].keys() == {i[0] for i in definition["inputs"]}, (path, name)
            assert len(texts[name]["outputs"]) == len(definition["outputs"]), (path, name)
