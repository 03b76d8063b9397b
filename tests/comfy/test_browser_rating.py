"""A made-up person at RLR Rate, RLR Preferences and RLR Method, in the real frontend.

The person's taste is hidden from the run, and 15 % of the clicks say the opposite of it.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
from browser import chromium, fit, load, open_page, page_on, queue_and_wait
from comfy_process import comfyui
from comfy_server import ComfyServer, make_base
from test_browser import SET, picture, workflow

pytestmark = pytest.mark.browser

WRONG = 0.15
ROUNDS = 3
TILES = """() => [...document.querySelectorAll(".rlr-tile")].map((tile) => {
  const place = new URL(tile.querySelector("img").src).searchParams;
  return { place: Number(tile.dataset.place), mark: tile.dataset.mark, width: tile.clientWidth,
    file: `${place.get("subfolder")}/${place.get("filename")}` };
})"""
STATUS = """() => document.querySelector(".rlr-rating-status")?.textContent"""
NEW_ROUND = """(round) => {
  const said = document.querySelector(".rlr-rating-status")?.textContent ?? "";
  return said.includes(`round ${round}:`) && document.querySelectorAll(".rlr-tile").length > 0;
}"""
GONE_ON = """(round) => {
  const said = document.querySelector(".rlr-rating-status")?.textContent ?? "";
  return said.includes(`round ${round}:`) || said.includes("come to its end");
}"""
ON_THE_DISK = """async () => (await (await fetch("/rlr/questions")).json()).questions.at(-1)?.marks"""
SHORT = {
    "RLR_LoadCheckpoint": {"checkpoint": "diffusers: tiny"},
    "RLR_Reward": {"reward": "brightness"},
    "RLR_Train": {
        "steps": 3, "batch": 8, "samples_per_prompt": 2, "sampler_steps": 3, "rank": 2, "evaluate_every": 9,
        "evaluation_samples": 4, "micro_batch": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    if chromium() is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium (apt-get install chromium) and playwright (pip install playwright)")
    comfyui()
    from tiny_sd import write_tiny_sd

    folder = make_base(tmp_path_factory.mktemp("person") / "base")
    write_tiny_sd(folder / "models/diffusers/tiny")
    return folder


# --- a person with a taste ---


def on_the_left(images):
    """How far to the left what is drawn lies, [N] of pictures [N, 3, H, W]."""
    import torch

    ink = 1 - images.mean(1)
    places = torch.linspace(1, -1, images.shape[-1])
    return (ink * places).mean((1, 2)) / ink.mean((1, 2))


def pixels(path: Path):
    from rlr_core.common.images import read_picture

    return read_picture(path)


class Person:
    """Clicks: once for the better half of what is shown, twice for the other, now and then the wrong way."""

    def __init__(self, page, base: Path):
        self.page, self.base, self.rng = page, base, random.Random(0)

    def rate(self, count: int | None = None) -> int:
        """Mark the first `count` pictures that are not marked yet; how many clicks that took."""
        import torch

        tiles = self.page.evaluate(TILES)
        scores = on_the_left(torch.stack([pixels(self.base / "output" / tile["file"]) for tile in tiles]))
        clicks = 0
        for tile, score in list(zip(tiles, scores, strict=True))[:count]:
            if tile["mark"]:
                continue
            good = bool(score > scores.median()) != (self.rng.random() < WRONG)
            for _ in range(1 if good else 2):
                self.page.locator(f'.rlr-tile[data-place="{tile["place"]}"]').click()
                clicks += 1
        return clicks

    def next(self) -> None:
        self.page.locator(".rlr-next").click()


def gain_of_taste(lora: Path) -> tuple[float, float]:
    """Mean and standard error of what a LoRA changes, on noise that the run has not seen."""
    from rlr_core.demo.preset import demo_config
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.evaluation.sampling import sample
    from rlr_core.lora import apply_lora

    model, prompts = load_model("demo", "cpu"), workflow_prompts() * 24
    told = {"seeds": range(5000, 5000 + len(prompts)), "sampler": demo_config().sampler, "batch": 32}
    before = on_the_left(sample(model, prompts, **told))
    apply_lora(model, lora)
    change = on_the_left(sample(model, prompts, **told)) - before
    return float(change.mean()), float(change.std() / len(change) ** 0.5)


def workflow_prompts() -> list[str]:
    golden = Path(__file__).parent / "golden/rlr-rate.json"
    return json.loads(golden.read_text(encoding="utf-8"))["2"]["inputs"]["text"].splitlines()


def test_three_rounds_of_clicks_with_a_killed_server_between_teach_a_taste(base, tmp_path):
    run = base / "output/rlr/rlr-rate"
    server = ComfyServer(comfyui(), base)
    with server, page_on(server, tmp_path / "profile") as page:
        page.vue, page.front_end = False, "own"
        person = Person(page, base)
        load(page, workflow("rlr-rate"), "rlr-rate")
        fit(page)
        page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
        for number in range(1, ROUNDS + 1):
            page.wait_for_function(NEW_ROUND, arg=number, timeout=900_000)
            page.wait_for_timeout(500)
            assert len(page.evaluate(TILES)) == 16
            if number == 2:
                person.rate(7)
                kept = [tile["mark"] for tile in page.evaluate(TILES)]
                page.wait_for_timeout(1000)
                picture(page, "rate-half-marked")
                server.process.kill()
                server.process.wait()
                server.__enter__()
                open_page(page, server)
                load(page, workflow("rlr-rate"), "rlr-rate")
                fit(page)
                page.wait_for_function(NEW_ROUND, arg=number, timeout=60_000)
                assert [tile["mark"] for tile in page.evaluate(TILES)] == kept and kept[6] and not kept[7]
            person.rate()
            picture(page, f"rate-round-{number}")
            person.next()
        page.wait_for_function(GONE_ON, arg=ROUNDS + 1, timeout=900_000)
        picture(page, "rate-afterwards")
        assert not [problem for problem in page.problems if "ComfyUI-RLR" in problem]
    gain, error = gain_of_taste(run / "lora.safetensors")
    print(f"the taste's mean after {ROUNDS} rounds: {gain:+.4f}, {gain / error:.1f} standard errors")
    assert gain > 3 * error


# --- each view in both kinds of nodes ---


@pytest.fixture(scope="module")
def server(base):
    with ComfyServer(comfyui(), base) as running:
        yield running


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def page(request, server, tmp_path_factory):
    with page_on(server, tmp_path_factory.mktemp("profile"), vue=request.param) as opened:
        opened.vue, opened.front_end = request.param, "own"
        yield opened


def waiting_for(page, name: str, **rate) -> None:
    """The workflow with a tiny model, come to its first round."""
    load(page, workflow("rlr-rate"), "rlr-rate")
    train = SHORT["RLR_Train"] | {"run_name": f"{name}_{page.vue}"}
    page.evaluate(SET, SHORT | {"RLR_Train": train, "RLR_Rate": {"updates_per_round": 1} | rate})
    fit(page)
    assert queue_and_wait(page)["kind"] == "execution_success"
    page.wait_for_function("() => document.querySelectorAll('.rlr-tile').length > 0", timeout=30_000)


def test_clicks_and_keys_mark_the_pictures_and_reach_the_disk(page):
    waiting_for(page, "keys")
    tiles = page.locator(".rlr-tile")
    assert tiles.count() == 8 and page.evaluate(TILES)[0]["width"] > 40
    for clicks, place in ((1, 0), (2, 1), (3, 2)):
        for _ in range(clicks):
            tiles.nth(place).click()
    for key, place in (("5", 3), ("2", 4), ("3", 5)):
        tiles.nth(place).hover()
        page.keyboard.press(key)
    marks = [1, -1, None, 1, -0.5, 0, None, None]
    page.wait_for_timeout(1000)
    assert page.evaluate(ON_THE_DISK) == marks
    assert "5 of 8 marked" in page.evaluate(STATUS)
    picture(page, "rate-marked")
    page.get_by_role("button", name="Large").click()
    page.wait_for_timeout(500)
    assert page.evaluate(TILES)[0]["width"] > 150 and [t["mark"] for t in page.evaluate(TILES)][:2] == [
        "1",
        "-1",
    ]
    if not page.vue:
        page.screenshot(path=_shot("rate-large")) if _shot("rate-large") else None
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    assert page.locator(".rlr-enlarged").count() == 0
    train = page.evaluate("() => document.querySelector('.rlr-status').textContent")
    assert "update 0 of 3: 8 pictures wait for your ratings" in train
    page.locator(".rlr-next").click()
    page.wait_for_function(NEW_ROUND, arg=2, timeout=120_000)
    assert all(not tile["mark"] for tile in page.evaluate(TILES))


def _shot(name: str):
    import os

    folder = os.environ.get("RLR_SCREENSHOTS")
    return Path(folder) / f"{name}.png" if folder else None


def test_pairs_are_decided_by_arrow_keys(page):
    waiting_for(page, "pairs", mode="pairs")
    assert page.locator(".rlr-tile").count() == 2
    picture(page, "rate-pairs")
    page.locator(".rlr-tile").nth(1).click()  # right
    page.locator(".rlr-rating").hover()
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)
    assert page.evaluate(ON_THE_DISK) == [-1, 1, -1, 1, 0, 0, None, None]
    assert "pair 4 of 4 (1 left)" in page.evaluate(STATUS)


def test_preferences_are_clicked_and_counted(page, base):
    name = f"clicked_{page.vue}"
    prompt = {
        "1": {"class_type": "EmptyImage",
              "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0xFF8800}},
        "2": {"class_type": "EmptyImage",
              "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0x0088FF}},
        "3": {"class_type": "RLR_Preferences",
              "inputs": {"images": ["1", 0], "images_b": ["2", 0], "prompt": "a cat\na dog", "name": name,
                         "choose": "by click"}},
    }  # fmt: skip
    from browser import load_api

    load_api(page, prompt, "preferences")
    fit(page)
    assert queue_and_wait(page)["kind"] == "execution_success"
    sides = page.locator(".rlr-side")
    sides.first.wait_for(timeout=20_000)
    status = page.locator(".rlr-pairs-status")
    assert "2 to go, 0 decided: a cat" in status.inner_text()
    page.wait_for_timeout(1000)
    assert all(side.bounding_box()["height"] > 100 for side in sides.all())
    picture(page, "preferences")
    sides.nth(1).click()
    page.locator(".rlr-pairs").hover()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(800)
    assert "All 2 pairs are decided" in status.inner_text()
    page.locator(".rlr-more").click()
    page.wait_for_timeout(3000)
    from rlr_core.methods.pairs import load_pairs

    found = load_pairs(base / f"output/rlr/pairs/{name}.safetensors")
    assert found.prompts == ["a cat", "a dog"]
    assert found.preferred[0, :, 0, 0].tolist() == [0, 0x88, 0xFF]
    assert found.preferred[1, :, 0, 0].tolist() == [0xFF, 0x88, 0]


SHOWN = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "RLR_Method");
  const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
  return { names: node.widgets.filter((w) => !w.hidden).map((w) => w.name), height: node.size[1],
    drawn: drawn?.innerText ?? null };
}"""
CHOOSE = """(name) => {
  const node = window.app.graph.nodes.find((n) => n.type === "RLR_Method");
  const widget = node.widgets.find((w) => w.name === "method");
  widget.value = name;
  widget.callback?.(name);
}"""


def test_rlr_method_shows_the_settings_of_the_method_chosen(page, server):
    methods = server.get("/rlr/methods")["methods"]
    load(page, workflow("rlr-compare-methods"), "rlr-compare-methods")
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    heights = {}
    for name in ("adaptive", "dpo", "graft", "full"):
        page.evaluate(CHOOSE, name)
        page.wait_for_timeout(500)
        found = page.evaluate(SHOWN)
        assert sorted(found["names"]) == sorted(["method", *methods[name]])
        heights[name] = found["height"]
        if page.vue:
            assert ("dpo_beta" in found["drawn"]) == (name == "dpo")
            assert ("budget" in found["drawn"]) == (name == "adaptive")
        fit(page)
        picture(page, f"method-{name}")
    assert heights["full"] < heights["graft"]
    after = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    for node, what in prompt.items():
        assert after[node]["inputs"].keys() == what["inputs"].keys(), "hidden inputs are sent all the same"
