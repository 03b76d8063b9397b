"""The page of a run on ComfyUI's own models: what the nodes say, the live view, videos that play.

Run with -m browser, as test_browser.py.
"""

from __future__ import annotations

import json

import pytest
import tiny_models_pack
from browser import fit, load_api, queue_and_wait
from comfy_process import ROOT, comfyui
from comfy_server import changed, make_base
from test_browser import SERIES, finished_view, page, picture, server  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

TRAIN = {
    "steps": 2,
    "batch": 4,
    "samples_per_prompt": 2,
    "sampler_steps": 3,
    "guidance": 1.0,
    "eta": 0.5,
    "rank": 2,
    "evaluate_every": 1,
    "evaluation_samples": 4,
    "micro_batch": 4,
    "decode_batch": 4,
    "stop_when_judge_drops": "off",
    "learning_rate": 1e-2,
}
FRAMES = """async () => {
  const counts = [];
  for (const image of document.querySelectorAll(".rlr-strip img")) {
    const type = image.src.slice("data:".length, image.src.indexOf(";"));
    const data = await (await fetch(image.src)).arrayBuffer();
    const decoder = new ImageDecoder({ data, type });
    await decoder.tracks.ready;
    counts.push([type, decoder.tracks.selectedTrack.frameCount]);
  }
  return counts;
}"""

CLIPPED = """() => {
  const all = [...document.querySelectorAll(".rlr-status")];
  const status = all.find((each) => each.textContent.includes("guidance"));
  return status.scrollHeight > status.clientHeight + 1;
}"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base directory whose server has the tiny models."""
    comfyui()
    folder = make_base(tmp_path_factory.mktemp("native") / "base")
    tiny_models_pack.install(folder)
    return folder


def graph(name: str, **train) -> dict:
    """Tiny models -> RLR From ComfyUI -> RLR Train -> KSampler, and what goes with it."""

    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    like = json.loads((ROOT / "tests/comfy/golden/rlr-sdxl.json").read_text(encoding="utf-8"))
    sources = {socket: ["1", place] for place, socket in enumerate(("model", "clip", "vae", "latent"))}
    wired = {"model": ["2", 0], "prompts": ["3", 0], "reward": ["4", 0]}
    trained = like["9"]["inputs"] | wired
    del trained["judge"]
    text = "a red circle\na cat\na dog"
    sampled = {"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    told = {"positive": ["6", 0], "negative": ["6", 0], "latent_image": ["1", 3], "denoise": 1.0}
    nodes = {
        "1": node("TinyModels", name=name),
        "2": node("RLR_FromComfy", **sources, scheduler="simple", guidance_kind="auto"),
        "3": node("RLR_Prompts", file="none: the text below", text=text, held_out=0.35),
        "4": node("RLR_Reward", **like["7"]["inputs"] | {"reward": "brightness"}),
        "5": node("RLR_Train", **trained),
        "6": node("CLIPTextEncode", clip=["1", 1], text="a cat"),
        "7": node("KSampler", model=["5", 6], **sampled, **told),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("PreviewImage", images=["8", 0]),
    }
    return changed(nodes, **TRAIN | train)


def shown(page, locator) -> bool:  # noqa: F811
    """Whether something comes to be seen."""
    for _ in range(40):
        if locator.count() and locator.first.is_visible():
            return True
        page.wait_for_timeout(250)
    return False


def plays(page, locator) -> bool:  # noqa: F811
    """Whether a picture changes while it is looked at."""
    first = locator.first.screenshot()
    for _ in range(30):
        page.wait_for_timeout(100)
        if locator.first.screenshot() != first:
            return True
    return False


def test_a_run_on_a_native_model_is_drawn_and_the_node_tells_what_it_is(page):  # noqa: F811
    load_api(page, graph("flux", run_name=f"flux_{page.vue}"), "native")
    assert queue_and_wait(page)["kind"] == "execution_success"
    view = finished_view(page)
    assert view["lines"] == SERIES and view["samples"] == 3
    assert page.evaluate(FRAMES) == [["image/jpeg", 1]] * 3
    assert shown(page, page.get_by_text("not distilled, as far as it tells"))
    picture(page, "native-flux")


def test_videos_play_in_the_live_view(page):  # noqa: F811
    load_api(page, graph("wan21", run_name=f"wan_{page.vue}"), "native-video")
    assert queue_and_wait(page)["kind"] == "execution_success"
    view = finished_view(page)
    assert view["samples"] == 3 and page.evaluate(FRAMES) == [["image/webp", 5]] * 3
    fit(page)  # what is out of sight does not play
    assert plays(page, page.locator(".rlr-strip img"))
    picture(page, "native-wan")


def test_a_wrong_guidance_is_said_in_the_node(page):  # noqa: F811
    prompt = graph("sdxl", run_name=f"wrong_{page.vue}", guidance=5.0)
    prompt["2"]["inputs"]["guidance_kind"] = "none (distilled)"
    load_api(page, prompt, "native-wrong")
    assert queue_and_wait(page)["kind"] == "execution_success"
    assert "takes no cfg: guidance 5 is not used" in finished_view(page)["status"]
    fit(page)
    assert page.evaluate(CLIPPED) is False, "the sentence does not fit"
    picture(page, "native-wrong")
