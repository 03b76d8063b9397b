"""Chromium on a ComfyUI page, through Playwright: load workflows, queue them, look."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = "() => window.app?.graph && window.app.extensionManager"
WAIT_FOR_END = """(id) => new Promise((resolve) => {
  const api = window.app.api ?? window.comfyAPI.api.api;
  for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
    api.addEventListener(kind, (e) => resolve({ kind, detail: e.detail }));
})"""


def chromium() -> str | None:
    """Where the browser is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def page_on(
    server: Any, profile: Path, vue: bool = False, size: tuple[int, int] = (1700, 1000)
) -> Iterator[Any]:
    """A page that has loaded the server's frontend. vue: with Vue nodes (Nodes 2.0)."""
    from playwright.sync_api import sync_playwright

    settings = {
        "Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False,
        "Comfy.VueNodes.Enabled": vue, "Comfy.Release.Status": "skipped", "Comfy.Minimap.Visible": False,
        "Comfy.Graph.CanvasInfo": False, "Comfy.Canvas.BackgroundImage": "",
    }  # fmt: skip
    server.post("/settings", settings)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=chromium(), args=ARGUMENTS, headless=True,
            viewport={"width": size[0], "height": size[1]},
        )  # fmt: skip
        try:
            page = context.pages[0] if context.pages else context.new_page()
            page.problems = []
            page.on("pageerror", lambda error: page.problems.append(error.stack or str(error)))
            open_page(page, server)
            yield page
        finally:
            context.close()


def open_page(page: Any, server: Any) -> None:
    """Load, or load again."""
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_function(READY, timeout=180_000)
    page.wait_for_timeout(1500)


def load(page: Any, workflow: dict[str, Any], name: str = "test") -> None:
    """Open a workflow file (UI format)."""
    page.evaluate("([w, n]) => window.app.loadGraphData(w, true, true, n)", [workflow, name])
    page.wait_for_timeout(1500)


def load_api(page: Any, prompt: dict[str, Any], name: str = "test") -> None:
    """Open an API workflow, which the frontend turns into a graph."""
    page.evaluate("([w, n]) => window.app.loadApiJson(w, n)", [prompt, name])
    page.wait_for_timeout(1500)


def as_prompt(page: Any) -> dict[str, Any]:
    """The API workflow that the page would queue, without titles."""
    output = page.evaluate(
        "async () => JSON.parse(JSON.stringify((await window.app.graphToPrompt()).output))"
    )
    return {
        node: {"class_type": what["class_type"], "inputs": what["inputs"]} for node, what in output.items()
    }


def nodes_with_errors(page: Any) -> list[Any]:
    """Types of the nodes that the frontend marks."""
    return page.evaluate("() => window.app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type)")


def queue_and_wait(page: Any, timeout: float = 600) -> dict[str, Any]:
    """Press Run; how it ended."""
    page.set_default_timeout(timeout * 1000)
    page.evaluate(f"() => {{ window.__end = ({WAIT_FOR_END})(); }}")
    page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
    return page.evaluate("() => window.__end")


def fit(page: Any) -> None:
    """Show the whole graph."""
    page.evaluate(
        """() => {
      const c = window.app.canvas, ds = c.ds, { nodes, groups } = window.app.graph;
      let [x0, y0, x1, y1] = [1e9, 1e9, -1e9, -1e9];
      for (const n of nodes) { x0 = Math.min(x0, n.pos[0]); y0 = Math.min(y0, n.pos[1] - 30);
        x1 = Math.max(x1, n.pos[0] + n.size[0]); y1 = Math.max(y1, n.pos[1] + n.size[1]); }
      for (const g of groups ?? []) { x0 = Math.min(x0, g.pos[0]); y0 = Math.min(y0, g.pos[1]);
        x1 = Math.max(x1, g.pos[0] + g.size[0]); y1 = Math.max(y1, g.pos[1] + g.size[1]); }
      const w = c.canvas.clientWidth - 80, h = c.canvas.clientHeight - 110;
      ds.scale = Math.min(w / (x1 - x0), h / (y1 - y0), 1.5);
      ds.offset[0] = 60 / ds.scale - x0 + (w / ds.scale - (x1 - x0)) / 2;
      ds.offset[1] = 70 / ds.scale - y0 + (h / ds.scale - (y1 - y0)) / 2;
      c.setDirty(true, true);
    }"""
    )
    page.wait_for_timeout(700)


def dump(workflow: dict[str, Any], path: Path) -> None:
    """A workflow as a file that diffs well."""
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
