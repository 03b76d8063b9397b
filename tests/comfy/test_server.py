"""Real ComfyUI servers with a copy of this repository in custom_nodes: what a person would see."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from comfy_process import comfyui
from comfy_server import PACK, ROOT, ComfyServer, changed, make_base

GOLDEN = Path(__file__).parent / "golden"
WORKFLOWS = sorted(path.stem for path in GOLDEN.glob("*.json"))
ELSEWHERE = ("RLR_FromComfy", "RLR_Rate")
RUNNABLE = [
    name
    for name in WORKFLOWS
    if not any(node in (GOLDEN / f"{name}.json").read_text("utf-8") for node in ELSEWHERE)
]
"""Those that run by themselves on models that a test can make; native/test_native_server.py and
test_rating_server.py run the others."""
SHORT = {
    "steps": 2, "batch": 4, "samples_per_prompt": 2, "sampler_steps": 3, "rank": 2, "evaluate_every": 1,
    "evaluation_samples": 4, "micro_batch": 4, "decode_batch": 4, "stop_when_judge_drops": "off",
}  # fmt: skip


def golden(name: str) -> dict:
    """The API workflow of this name."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def on_tiny_models(prompt: dict) -> dict:
    """The same workflow, short, on models with random weights that a test can make."""
    prompt = changed(prompt, **SHORT)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "RLR_LoadCheckpoint" and inputs["checkpoint"].startswith("demo"):
            inputs["checkpoint"] = "diffusers: tiny"
        if node["class_type"] == "RLR_Reward" and inputs["reward"] in ("demo", "judge"):
            inputs["reward"] = {"demo": "brightness", "judge": "contrast"}[inputs["reward"]]
        if node["class_type"] == "RLR_Prompts":
            inputs |= {"file": "none: the text below", "text": "a red circle\na cat\na dog", "held_out": 0.35}
        if node["class_type"] == "EmptyLatentImage":
            inputs["width"] = inputs["height"] = 128
        if node["class_type"] in ("KSampler", "RLR_Sample"):
            inputs["steps"] = 2
    if str(prompt["1"]["inputs"].get("checkpoint")).startswith("v1-5"):
        prompt = changed(prompt, width=64, height=64)
    return prompt


def lora_of(base: Path, run: str) -> dict:
    """The tensors of a run's LoRA."""
    from safetensors.torch import load_file

    return load_file(base / "output/rlr" / run / "lora.safetensors")


def same(left: dict, right: dict) -> bool:
    """Whether both hold the same tensors, bit for bit."""
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base directory with every file that the workflows name, tiny or thin, with random weights."""
    path = comfyui()
    assert (path / "main.py").is_file()
    from reference import rewards_tiny
    from thin_sd15 import write_checkpoint
    from tiny_sd import write_tiny_sd

    folder = make_base(tmp_path_factory.mktemp("server") / "base")
    write_tiny_sd(folder / "models/diffusers/tiny")
    write_checkpoint(folder / "models/checkpoints/v1-5-pruned-emaonly-fp16.safetensors")
    rewards = folder / "models/reward_models"
    rewards_tiny.save(rewards_tiny.aesthetic_head(), rewards / "sac+logos+ava1-l14-linearMSE.safetensors")
    clip = rewards_tiny.hugging_face_clip("quick_gelu")
    rewards_tiny.save(clip, rewards / "clip-vit-large-patch14.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(base):
    with ComfyServer(comfyui(), base) as running:
        yield running


def test_all_nodes_are_there(server):
    nodes = {name for name in server.get("/object_info") if name.startswith("RLR_")}
    assert len(nodes) == 18
    line = next(line for line in server.text().splitlines() if line.rstrip().endswith(f"custom_nodes/{PACK}"))
    print(line)
    assert "FAILED" not in line


def test_definitions_and_locale_are_what_the_server_says(server):
    from make_workflows import definitions, locale

    info = server.get("/object_info")
    kept = json.loads((GOLDEN.parent / "definitions.json").read_text(encoding="utf-8"))
    ours = {name: what for name, what in definitions(info).items() if name.startswith("RLR_")}
    for name, what in ours.items():
        advanced = what.pop("advanced")
        assert advanced in ({}, kept[name].pop("advanced"))  # old versions know no advanced inputs
        assert what == kept[name]
    texts = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    assert locale(info) == texts


def test_the_templates_browser_lists_every_workflow(server):
    listed = server.get("/workflow_templates")[PACK]
    assert sorted(listed) == WORKFLOWS


NEEDS = {"rlr-readable-text": ("rapidocr", "onnxruntime")}
"""Workflow -> packages of its reward, which are no dependency."""


@pytest.mark.parametrize("name", RUNNABLE)
def test_golden_workflows_run_to_success(server, name):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    started = time.monotonic()
    outputs = server.run(on_tiny_models(golden(name)))
    print(f"{name}: {time.monotonic() - started:.1f} s")
    previews = [node for node, what in golden(name).items() if what["class_type"] == "PreviewImage"]
    assert all(outputs[node]["images"] for node in previews)
    assert "lora key not loaded" not in server.text() and "NOT LOADED" not in server.text()


def test_the_same_prompt_again_is_answered_with_the_stored_view(server):
    prompt = on_tiny_models(golden("rlr-demo"))
    server.run(prompt)
    view = server.run(prompt).get("5", {}).get("rlr")
    kept = next(run for run in server.get("/rlr/runs")["runs"] if run["node"] == "5")
    assert kept["state"] == "finished"
    if view is not None:  # old versions resend the outputs of cached nodes, new ones list what ran
        assert [point["step"] for point in view[0]["points"]] == [0, 1, 2]


def test_cancel_then_queue_again_goes_on_and_ends_like_an_uncancelled_run(server, base):
    """At moments at random; how long Cancel took is printed."""
    prompt = on_tiny_models(golden("rlr-demo"))
    long = {"steps": 30, "evaluate_every": 10}
    server.run(changed(prompt, run_name="whole", **long))
    whole = lora_of(base, "whole")
    moments, waits, stopped = random.Random(0), [], 0
    for trial in range(4):
        name = f"stopped_{trial}"
        prompt_id = server.queue(changed(prompt, run_name=name, **long))
        time.sleep(0.3 + 2.0 * moments.random())
        pressed = time.monotonic()
        server.interrupt()
        entry = server.wait(prompt_id)
        waits.append(time.monotonic() - pressed)
        if entry["status"]["status_str"] != "success":
            messages = [kind for kind, _ in entry["status"]["messages"]]
            assert "execution_interrupted" in messages, messages
            stopped += 1
        server.run(changed(prompt, run_name=name, **long))
        assert same(lora_of(base, name), whole)
    print(f"cancel to idle: {', '.join(f'{wait:.2f}' for wait in waits)} s")
    assert stopped > 0


@pytest.mark.parametrize(
    ("node", "name", "value"),
    [
        ("5", "run_name", "../../evil"), ("5", "run_name", "/evil"), ("5", "steps", 10**9),
        ("5", "batch", 10**6), ("1", "checkpoint", "../../../etc/passwd"), ("2", "file", "../../etc/passwd"),
        ("3", "weights", "/etc/passwd"), ("5", "mode", "__import__('os')"),
    ],
)  # fmt: skip
def test_a_malicious_workflow_is_refused_and_leaves_nothing(server, base, node, name, value):
    prompt = on_tiny_models(golden("rlr-demo"))
    prompt[node]["inputs"][name] = value
    before = {path for path in base.rglob("*") if path.is_dir()}
    status, answer = server.post("/prompt", {"prompt": prompt})
    if status == 200:
        entry = server.wait(answer["prompt_id"])
        assert entry["status"]["status_str"] == "error"
        assert "UserError" in json.dumps(entry["status"])
    assert {path for path in base.rglob("*") if path.is_dir()} == before


def test_after_a_restart_a_finished_run_returns_at_once(base):
    prompt = changed(on_tiny_models(golden("rlr-demo")), run_name="restarted")
    with ComfyServer(comfyui(), base) as first:
        first.run(prompt)
    lora = base / "output/rlr/restarted/lora.safetensors"
    written = lora.stat().st_mtime_ns
    with ComfyServer(comfyui(), base) as second:
        started = time.monotonic()
        outputs = second.run(prompt)
        seconds = time.monotonic() - started
        (kept,) = second.get("/rlr/runs")["runs"]
        longer = second.run(changed(prompt, steps=3))
    print(f"finished run after a restart: {seconds:.2f} s")
    assert [point["step"] for point in outputs["5"]["rlr"][0]["points"]] == [0, 1, 2]
    assert kept == outputs["5"]["rlr"][0]  # for a page that is opened now
    assert [point["step"] for point in longer["5"]["rlr"][0]["points"]] == [0, 1, 2, 3]
    assert lora.stat().st_mtime_ns > written


def test_a_killed_server_leaves_a_run_that_goes_on(base):
    prompt = changed(on_tiny_models(golden("rlr-demo")), run_name="killed", steps=12)
    with ComfyServer(comfyui(), base) as first:
        first.queue(prompt)
        state = base / "output/rlr/killed/state/state.safetensors"
        deadline = time.monotonic() + 120
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        first.process.kill()
    with ComfyServer(comfyui(), base) as second:
        second.run(prompt)
        second.run(changed(prompt, run_name="unharmed"))
    assert same(lora_of(base, "killed"), lora_of(base, "unharmed"))
