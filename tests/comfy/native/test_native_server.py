"""A stock graph in a real server: loaders, RLR From ComfyUI, RLR Train and a KSampler behind it."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from comfy_process import comfyui
from comfy_server import ComfyServer, changed, make_base

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TRAIN = {
    "steps": 3,
    "batch": 4,
    "samples_per_prompt": 2,
    "sampler_steps": 3,
    "guidance": 2.0,
    "eta": 0.5,
    "rank": 2,
    "evaluate_every": 2,
    "evaluation_samples": 4,
    "micro_batch": 4,
    "decode_batch": 4,
    "stop_when_judge_drops": "off",
    "learning_rate": 1e-2,
    "run_name": "native",
}

SOMETHING_ELSE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def graph() -> dict:
    """Loaders and an empty latent -> RLR From ComfyUI -> RLR Train -> KSampler, and what goes with it."""

    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    like = json.loads((GOLDEN / "rlr-sdxl.json").read_text(encoding="utf-8"))
    sources = {"model": ["1", 0], "clip": ["2", 0], "vae": ["3", 0], "latent": ["4", 0]}
    train = like["9"]["inputs"] | {"model": ["5", 0], "prompts": ["6", 0], "reward": ["7", 0]}
    del train["judge"]
    nodes = {
        "1": node("UNETLoader", unet_name="thin.safetensors", weight_dtype="default"),
        "2": node("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion"),
        "3": node("VAELoader", vae_name="vae.safetensors"),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node("RLR_FromComfy", **sources, scheduler="normal", guidance_kind="auto"),
        "6": node(
            "RLR_Prompts", file="none: the text below", text="a red circle\na cat\na dog", held_out=0.35
        ),
        "7": node("RLR_Reward", **like["7"]["inputs"] | {"reward": "brightness"}),
        "8": node("RLR_Train", **train),
        "9": node("CLIPTextEncode", clip=["2", 0], text="a cat"),
        "10": sampler(["8", 6]),
        "11": node("VAEDecode", samples=["10", 0], vae=["3", 0]),
        "12": node("SaveImage", images=["11", 0], filename_prefix="patched"),
        "13": node("RLR_SaveLoRA", lora=["8", 0], name="native", if_exists="keep both"),
    }
    return changed(nodes, **TRAIN)


def sampler(model: list) -> dict:
    return {
        "class_type": "KSampler",
        "inputs": {
            "model": model,
            "seed": 1,
            "steps": 2,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "positive": ["9", 0],
            "negative": ["9", 0],
            "latent_image": ["4", 0],
        },
    }


def tensors(base, run):
    from safetensors.torch import load_file

    return load_file(base / "output/rlr" / run / "lora.safetensors")


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base directory with a thin Stable Diffusion 1.5 as three files."""
    comfyui()
    from safetensors.torch import load_file, save_file
    from thin_sd15 import write_checkpoint

    folder = make_base(tmp_path_factory.mktemp("native") / "base")
    whole = folder / "whole.safetensors"
    write_checkpoint(whole)
    state = load_file(whole)
    whole.unlink()
    parts = {
        "diffusion_models/thin": "model.diffusion_model.",
        "text_encoders/clip_l": "cond_stage_model.transformer.",
        "vae/vae": "first_stage_model.",
    }
    for name, prefix in parts.items():
        path = folder / f"models/{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        save_file(part, path)
    return folder


@pytest.fixture(scope="module")
def server(base):
    with ComfyServer(comfyui(), base) as running:
        yield running


def picture(base, prefix):
    """Pixels of the last picture saved under a prefix."""
    import numpy as np
    from PIL import Image

    with Image.open(sorted((base / "output").glob(f"{prefix}_*.png"))[-1]) as image:
        return np.asarray(image).astype(int)


def test_a_stock_graph_is_trained_and_its_lora_loaded_by_the_stock_loader(server, base):
    outputs = server.run(graph())
    view = outputs["8"]["rlr"][0]
    assert view["state"] == "finished" and [point["step"] for point in view["points"]] == [0, 1, 2, 3]
    assert any(value.abs().sum() > 0 for key, value in tensors(base, "native").items() if "lora_up" in key)
    saved = sorted((base / "output/loras").glob("native*.safetensors"))[-1].name
    after = graph()
    for gone in ("5", "6", "7", "8", "13"):
        del after[gone]
    after["14"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": saved, "strength_model": 1.0},
    }
    after["10"] = sampler(["14", 0])
    after["12"]["inputs"]["filename_prefix"] = "loaded"
    server.run(after)
    after["10"] = sampler(["1", 0])
    after["12"]["inputs"]["filename_prefix"] = "base"
    server.run(after)
    patched, loaded, plain = (picture(base, name) for name in ("patched", "loaded", "base"))
    assert abs(patched - loaded).max() <= 1
    assert abs(patched - plain).max() > 1
    assert "lora key not loaded" not in server.text() and "NOT LOADED" not in server.text()


def test_a_finished_run_is_returned_without_its_model_being_loaded(server, base):
    """Nothing is cached, and nobody else asks for the model: the loaders open its files, and that is all.

    (The CLIP loader loads its own on the CPU.)
    """
    server.run(graph())
    alone = graph()
    for gone in ("9", "10", "11", "12"):
        del alone[gone]
    server.post("/free", {"unload_models": True, "free_memory": True})
    server.run(SOMETHING_ELSE)  # what was asked for is freed after it at the latest
    before, started = len(server.text()), time.monotonic()
    entry = server.wait(server.queue(alone))
    print(f"a finished run: {time.monotonic() - started:.1f} s")
    messages = dict(entry["status"]["messages"])
    assert "execution_success" in messages and not messages["execution_cached"]["nodes"]
    assert entry["outputs"]["8"]["rlr"][0]["state"] == "finished"
    for name in ("BaseModel", "AutoencoderKL"):
        assert f"Requested to load {name}" in server.text()[:before]
        assert f"Requested to load {name}" not in server.text()[before:]


def test_cancelled_ten_times_it_ends_like_an_uncancelled_run(server, base):
    """At moments at random, each time going on where it was; how long Cancel took is printed."""
    server.run(changed(graph(), steps=8, run_name="whole"))
    moments, waits = random.Random(0), []
    prompt = changed(graph(), steps=8, run_name="stopped")
    for _ in range(10):
        prompt_id = server.queue(prompt)
        time.sleep(0.3 + 1.5 * moments.random())
        pressed = time.monotonic()
        server.interrupt()
        entry = server.wait(prompt_id)
        if entry["status"]["status_str"] != "success":
            waits.append(time.monotonic() - pressed)
    print(f"cancel to idle: {', '.join(f'{wait:.2f}' for wait in waits)} s")
    server.run(prompt)
    assert waits and same(tensors(base, "stopped"), tensors(base, "whole"))


def test_a_wrong_graph_says_so_in_one_sentence(server):
    prompt = graph()
    prompt["5"]["inputs"]["model"] = ["15", 0]
    prompt["15"] = {"class_type": "RescaleCFG", "inputs": {"model": ["1", 0], "multiplier": 0.7}}
    entry = server.wait(server.queue(prompt))
    assert entry["status"]["status_str"] == "error" and "cfg formula" in json.dumps(entry["status"])
