"""The real frontend in Chromium: workflows load, say what they should, run, and the live view is right.

Run with -m browser, with chromium and playwright installed. COMFYUI_FRONT_ENDS may name unpacked
comfyui-frontend-package folders (.../static), separated by ':', to test those instead of ComfyUI's own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import uuid
from pathlib import Path

import pytest
from browser import (
    as_prompt,
    chromium,
    fit,
    load,
    load_api,
    nodes_with_errors,
    open_page,
    page_on,
    queue_and_wait,
)
from comfy_process import ROOT, comfyui
from comfy_server import PACK, ComfyServer
from make_workflows import touch_models
from test_server import SHORT, WORKFLOWS, golden
from test_server import base as files  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser

FRONT_ENDS = [path for path in os.environ.get("COMFYUI_FRONT_ENDS", "").split(os.pathsep) if path] or ["own"]
VIEW = """() => {
  const strips = [...document.querySelectorAll(".rlr-live-view")];
  return strips.map((view) => ({
    counter: view.querySelector(".rlr-counter").textContent,
    status: view.querySelector(".rlr-status").textContent,
    clock: view.querySelector(".rlr-clock").textContent,
    charts: [...view.querySelectorAll(".rlr-chart")].map((chart) => chart.firstChild.textContent),
    hidden: [...view.querySelectorAll(".rlr-status")].some((e) => e.scrollHeight > e.clientHeight + 1),
    lines: [...view.querySelectorAll("polyline")].map((line) => line.dataset.series)
      .filter((name) => !name.includes(" ")).sort(),
    samples: view.querySelectorAll(".rlr-strip img").length,
    height: view.getBoundingClientRect().height,
  }));
}"""
SERIES = ["distance", "held_out", "judge", "reward"]
TEXTS = """() => [
  [...document.querySelectorAll(".rlr-text")].map((e) => e.innerText),
  [...document.querySelectorAll(".rlr-text figure")].filter((e) => e.querySelector("img").naturalWidth > 0)
    .map((e) => e.innerText.trim()),
]"""
PICTURES_IN_TRAIN = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "RLR_Train");
  const vue = [...document.querySelectorAll(`.lg-node[data-node-id="${node.id}"] img`)];
  return (node.imgs?.length ?? 0) + vue.filter((image) => !image.closest(".rlr-live-view")).length;
}"""
STATES = """async () => {
  const { runs } = await (await fetch("/rlr/runs")).json();
  return [(window.app.rootGraph ?? window.app.graph).id, runs.map((r) => [r.workflow, r.node, r.state])];
}"""
WARNINGS = """() => [...document.querySelectorAll(
  ".p-toast-message-warn, .p-toast-message-error, .p-dialog, [role=alertdialog]")].map((e) => e.innerText)"""
PREVIEWS = """() => document.querySelectorAll(".lg-node img[src^='blob:']").length"""
REWARDS = """() => {
  for (const node of window.app.graph.nodes)
    if (node.type === "RLR_Reward")
      for (const widget of node.widgets)
        if (widget.name === "reward") widget.value = widget.value === "demo" ? "brightness" : "contrast";
}"""
OPEN = """() => {
  const outer = window.app.graph.nodes.find((n) => n.subgraph);
  window.app.canvas.openSubgraph(outer.subgraph, outer);
}"""
SET = """(values) => {
  const all = (graph) => graph.nodes.flatMap((n) => (n.subgraph ? [n, ...all(n.subgraph)] : [n]));
  const root = window.app.rootGraph ?? window.app.graph;
  for (const node of all(root)) {
    const further = {};
    for (const [name, value] of Object.entries(values[node.type] ?? {})) {
      const widget = (node.widgets ?? []).find((one) => one.name === name);
      if (widget) widget.value = value;
      else further[name] = value;
    }
    if (node.type !== "RLR_Train" || !Object.keys(further).length) continue;
    const slot = node.findInputSlot("settings");
    let settings = node.getInputNode(slot);
    if (!settings) {
      settings = window.LiteGraph.createNode("RLR_TrainSettings");
      node.graph.add(settings);
      settings.pos = [node.pos[0], node.pos[1] + node.size[1] + 60];
      settings.connect(0, node, slot);
    }
    for (const [name, value] of Object.entries(further))
      settings.widgets.find((one) => one.name === name).value = value;
  }
}"""
TINY = {
    "RLR_LoadCheckpoint": {"checkpoint": "diffusers: tiny"},
    "RLR_Prompts": {"file": "none: the text below", "text": "a red circle\na cat"},
    "RLR_Train": SHORT,
}


@pytest.fixture(scope="module")
def base(files):  # noqa: F811
    """A base directory with an empty file, too, for every name of the native workflows' loaders."""
    touch_models(files)
    return files


@pytest.fixture(
    scope="module", params=FRONT_ENDS, ids=lambda path: Path(path).parts[-3] if "/" in path else path
)
def server(request, base):
    if chromium() is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium (apt-get install chromium) and playwright (pip install playwright)")
    options = () if request.param == "own" else ("--front-end-root", request.param)
    with ComfyServer(comfyui(), base, *options) as running:
        running.front_end = "own" if request.param == "own" else Path(request.param).parts[-3]
        yield running


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def page(request, server, tmp_path_factory):
    with page_on(server, tmp_path_factory.mktemp("profile"), vue=request.param) as opened:
        opened.vue, opened.front_end = request.param, server.front_end
        if request.param and not has_text_boxes(opened):
            pytest.skip("the Vue nodes of this frontend draw no DOM widgets, not even its own text boxes")
        yield opened


def has_text_boxes(page) -> bool:
    """Whether the prompts of the demo workflow are to be seen."""
    load(page, workflow("rlr-demo"), "rlr-demo")
    for _ in range(40):
        if page.evaluate("() => document.querySelectorAll('textarea').length") > 0:
            return True
        page.wait_for_timeout(500)
    return False


def workflow(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def picture(page, name: str) -> None:
    """A screenshot, where RLR_SCREENSHOTS names a folder for them."""
    folder = os.environ.get("RLR_SCREENSHOTS")
    if folder:
        place = Path(folder) / page.front_end
        place.mkdir(parents=True, exist_ok=True)
        fit(page)
        page.screenshot(path=place / f"{name}-{'vue' if page.vue else 'canvas'}.png")


def finished_view(page) -> dict:
    """The one live view that shows a run, once it says that the run is over."""
    views: list[dict] = []
    for _ in range(60):
        views = [view for view in page.evaluate(VIEW) if view["lines"]]
        if len(views) == 1 and "Finished" in views[0]["status"]:
            return views[0]
        page.wait_for_timeout(250)
    raise AssertionError(f"no view of a finished run: {page.evaluate(VIEW)}, {page.evaluate(STATES)}")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_loads_without_errors_and_says_what_the_golden_file_says(page, name):
    load(page, workflow(name), name)
    assert nodes_with_errors(page) == []
    assert page.evaluate(WARNINGS) == []
    assert as_prompt(page) == golden(name)
    picture(page, name)


def test_the_demo_opens_from_the_templates_browser(page):
    if not page.evaluate("async () => (await fetch('/templates/index.json')).ok"):
        pytest.skip("this Python has the templates of another ComfyUI, and the browser waits for its own")
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(f"{PACK}: train on a reward").first.click()  # of locales/en/main.json
    page.locator('img[alt="rlr-demo"]').first.click()
    for _ in range(60):
        types = page.evaluate("() => window.app.graph.nodes.map((node) => node.type)")
        if "RLR_Train" in types and len(types) == len(workflow("rlr-demo")["nodes"]):
            break
        page.wait_for_timeout(250)
    assert as_prompt(page) == golden("rlr-demo") and nodes_with_errors(page) == []


def test_the_demo_runs_and_its_view_shows_it_also_after_a_reload(page, server):
    load(page, workflow("rlr-demo"), "rlr-demo")
    page.evaluate(SET, TINY | {"RLR_Train": SHORT | {"run_name": f"page_{page.vue}"}})
    page.evaluate(REWARDS)
    assert queue_and_wait(page)["kind"] == "execution_success"
    view = finished_view(page)
    assert view["lines"] == SERIES and view["samples"] == 3
    assert view["counter"] == "Step 2 of 2" and "Finished." in view["status"]
    reward, judge, distance = view["charts"]  # held-out figures, before and now
    assert re.fullmatch(r"reward \S+ \u2192 \S+", reward) and re.fullmatch(r"judge \S+ \u2192 \S+", judge)
    assert re.fullmatch(r"distance \S+", distance)
    assert view["height"] > 20
    assert page.evaluate(PICTURES_IN_TRAIN) == 0, "its pictures are in the view already"
    page.wait_for_timeout(1500)
    assert page.evaluate(PREVIEWS) == 0, "the last preview stays in front of the final pictures"
    picture(page, "demo-after")

    open_page(page, server)
    load(page, workflow("rlr-demo"), "rlr-demo")
    again = finished_view(page)
    assert again["lines"] == view["lines"] and again["status"] == view["status"]
    assert not [problem for problem in page.problems if PACK in problem]  # the frontend has its own


def test_a_run_that_ends_with_no_page_open_is_shown_by_the_next(page, server):
    load(page, workflow("rlr-demo"), "rlr-demo")
    page.evaluate(SET, TINY | {"RLR_Train": SHORT | {"run_name": f"alone_{page.vue}"}})
    page.evaluate(REWARDS)
    page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
    page.goto("about:blank")
    deadline = time.monotonic() + 120
    while not server.idle() and time.monotonic() < deadline:
        time.sleep(0.1)
    open_page(page, server)
    load(page, workflow("rlr-demo"), "rlr-demo")
    view = finished_view(page)
    assert view["status"].startswith(f"alone_{page.vue}") and view["samples"] == 3


def test_the_view_is_right_inside_a_subgraph(page):
    load(page, workflow("rlr-demo"), "rlr-demo")
    page.evaluate(SET, TINY | {"RLR_Train": SHORT | {"run_name": f"sub_{page.vue}"}})
    page.evaluate(REWARDS)
    page.evaluate("""() => {
      const graph = window.app.graph;
      graph.convertToSubgraph(new Set(graph.nodes.filter((n) => n.type === "RLR_Train")));
    }""")
    page.wait_for_timeout(1000)
    (node,) = [n for n, what in as_prompt(page).items() if what["class_type"] == "RLR_Train"]
    assert ":" in node
    assert queue_and_wait(page)["kind"] == "execution_success"
    page.evaluate(OPEN)
    view = finished_view(page)
    assert view["lines"] == SERIES and view["samples"] == 3
    picture(page, "subgraph")


def test_a_run_over_the_api_is_in_no_pages_node(page, server):
    fresh = workflow("rlr-demo") | {"id": str(uuid.uuid4())}  # no run of an earlier test is shown again
    load(page, fresh, "rlr-demo")
    page.evaluate(SET, TINY | {"RLR_Train": SHORT | {"run_name": f"api_{page.vue}"}})
    page.evaluate(REWARDS)
    server.run(as_prompt(page))  # the same nodes, of the same numbers
    assert (f"api_{page.vue}") in [run["run"] for run in server.get("/rlr/runs")["runs"]]
    page.wait_for_timeout(1000)
    (view,) = page.evaluate(VIEW)
    assert view["counter"] == "" and view["lines"] == [] and view["samples"] == 0
    open_page(page, server)
    load(page, fresh, "rlr-demo")
    assert page.evaluate(VIEW)[0]["lines"] == []


def test_the_whole_sentence_of_an_error_is_visible(page):
    load(page, workflow("rlr-demo"), "rlr-demo")
    prompts = {"RLR_Prompts": {"file": "none: the text below", "text": "a photo of a cat\na photo of a dog"}}
    page.evaluate(SET, prompts | {"RLR_Train": SHORT | {"run_name": f"wrong_{page.vue}"}})
    assert queue_and_wait(page)["kind"] == "execution_error"
    page.wait_for_timeout(1000)
    (view,) = page.evaluate(VIEW)
    assert "a photo of a cat" in view["status"] and view["status"].endswith(".")
    assert len(view["status"]) > 120 and not view["hidden"], view
    page.keyboard.press("Escape")
    picture(page, "error")


def test_reports_and_scores_are_to_be_read_in_their_nodes(page):
    nodes = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 8421504},
        },
        "2": {"class_type": "RLR_Reward", "inputs": {"reward": "brightness"}},
        "3": {
            "class_type": "RLR_ScoreImages",
            "inputs": {"images": ["1", 0], "reward": ["2", 0], "prompt": ""},
        },
        "4": {"class_type": "RLR_TrainingReport", "inputs": {"run_folder": f"page_{page.vue}"}},
    }
    load_api(page, nodes)
    assert queue_and_wait(page)["kind"] == "execution_success"
    page.wait_for_timeout(1000)
    texts, pictures = page.evaluate(TEXTS)
    assert any("brightness, mean 0.50" in text for text in texts)
    assert any("2 of 2 updates, finished" in text for text in texts)
    assert pictures == ["0.502"] * 3
    picture(page, "texts")


def test_a_help_page_is_served(server):
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/extensions/{PACK}/docs/RLR_Train.md", timeout=30) as answer:
        assert answer.read().startswith(b"# RLR Train")
