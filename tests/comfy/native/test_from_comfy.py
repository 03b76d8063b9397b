"""RLR From ComfyUI with RLR Train and RLR Sample, executed as ComfyUI does."""

from __future__ import annotations

import importlib

import pytest
import torch
from native_models import build

TRAIN = {
    "steps": 2,
    "batch": 4,
    "samples_per_prompt": 2,
    "sampler_steps": 3,
    "guidance": 2.0,
    "rank": 2,
    "evaluate_every": 1,
    "evaluation_samples": 4,
    "eta": 0.5,
}


@pytest.fixture
def from_comfy(run):
    """from_comfy(name, **inputs): an RLR_MODEL over a tiny model."""

    def make(name, sockets=None, **inputs):
        made = sockets or build(name)
        (model,) = run(
            "RLR_FromComfy", model=made.model, clip=made.clip, vae=made.vae, latent=made.latent, **inputs
        )
        return model

    return make


@pytest.fixture
def around(run):
    """Prompts and a reward for RLR Train."""
    (prompts,) = run("RLR_Prompts", text="a red circle\na blue square\na cat\na dog", held_out=0.5)
    (reward,) = run("RLR_Reward", reward="brightness")
    return {"prompts": prompts, "reward": reward}


@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen-image", "wan21"])
def test_training_gives_every_output_and_a_model_to_sample_with(run, from_comfy, around, name):
    import comfy.sample

    sockets = build(name)
    model = from_comfy(name, sockets)
    lora, trained, before_after, _, folder, losses, patched = run(
        "RLR_Train", run_name=f"native-{name}", model=model, **around, **TRAIN
    )
    assert lora.metadata["rlr_steps"] == "2" and len(losses["loss"]) == 2
    assert before_after.shape[0] == (5 if name == "wan21" else 1) and before_after.std() > 0
    assert trained.lora == f"{folder}/lora.safetensors" and trained.model is sockets.model
    assert len(patched.patches) == sum(key.endswith(("lora_up.weight", "lora_B.weight")) for key in lora)

    told = sockets.clip.encode_from_tokens_scheduled("a cat")
    latent = comfy.sample.fix_empty_latent_channels(patched, sockets.latent["samples"])
    with torch.inference_mode():
        sampled = [
            comfy.sample.sample(
                m, torch.ones_like(latent), 2, 1.0, "euler", "simple", told, told, latent, seed=0
            )
            for m in (sockets.model, patched, sockets.model)
        ]
    assert torch.equal(sampled[0], sampled[2]) and not torch.equal(sampled[0], sampled[1])


def test_a_finished_run_returns_without_loading_anything_and_another_model_is_another_run(
    run, from_comfy, around, monkeypatch
):
    first = run("RLR_Train", run_name="native-again", model=from_comfy("flux"), **around, **TRAIN)

    def refuse(*arguments, **keywords):
        raise AssertionError("a finished run was trained or loaded again")

    again = build("flux")
    again.clip.encode_from_tokens_scheduled = refuse
    with monkeypatch.context() as patched:
        patched.setattr("rlr_core.training.trainer.train", refuse)
        patched.setattr("rlr_core.rewards.load_reward", refuse)
        patched.setattr("comfy.model_management.load_models_gpu", refuse)
        patched.setattr(type(again.model), "patch_model", refuse)
        second = run("RLR_Train", run_name="native-again", model=from_comfy("flux", again), **around, **TRAIN)
    assert second[4] == first[4]
    other = build("flux")
    with torch.inference_mode():
        other.model.model.diffusion_model.img_in.weight.add_(0.01)
    third = run("RLR_Train", run_name="native-again", model=from_comfy("flux", other), **around, **TRAIN)
    assert third[4] == f"{first[4]}_2"


def test_cancel_keeps_the_run_and_it_goes_on_bit_equal(run, from_comfy, around, monkeypatch):
    import comfy.model_management as mm
    from safetensors.torch import load_file

    whole = run("RLR_Train", run_name="native-whole", model=from_comfy("flux"), **around, **TRAIN)
    from comfy_process import MODULE

    host = importlib.import_module(f"{MODULE}.nodes.host")
    asked, ask = [], host.check_cancel

    def cancel_late():
        asked.append(1)
        if len(asked) == 60:
            mm.interrupt_current_processing()
        ask()

    with monkeypatch.context() as patched:
        patched.setattr(host, "check_cancel", cancel_late)
        with pytest.raises(mm.InterruptProcessingException):
            run("RLR_Train", run_name="native-parts", model=from_comfy("flux"), **around, **TRAIN)
    parts = run("RLR_Train", run_name="native-parts", model=from_comfy("flux"), **around, **TRAIN)
    left, right = (load_file(f"{outputs[4]}/lora.safetensors") for outputs in (whole, parts))
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(("name", "frames"), [("flux", 1), ("wan21", 5)])
def test_pictures_and_frames_come_out_as_an_image_batch(run, from_comfy, name, frames):
    (prompts,) = run("RLR_Prompts", text="a cat\na dog")
    model = from_comfy(name)
    (images,) = run("RLR_Sample", model=model, prompts=prompts, seed=1, steps=2, guidance=1.0)
    assert images.shape[0] == 2 * frames and images.shape[-1] == 3


def test_what_cannot_be_trained_is_refused_in_the_node(run, from_comfy):
    sockets = build("flux")
    sockets.model = sockets.model.clone()
    sockets.model.set_model_sampler_cfg_function(lambda args: args["cond"])
    with pytest.raises(Exception, match="cfg formula"):
        from_comfy("flux", sockets)
    with pytest.raises(Exception, match="'vae'"):
        run("RLR_FromComfy", model=sockets.model, clip=sockets.clip, vae=None, latent=sockets.latent)


def test_a_videos_run_leaves_animations_that_the_live_view_plays(run, from_comfy, around):
    import base64
    import io
    from pathlib import Path

    from comfy_process import MODULE
    from PIL import Image

    folder = run("RLR_Train", run_name="native-moving", model=from_comfy("wan21"), **around, **TRAIN)[4]
    live = importlib.import_module(f"{MODULE}.nodes.live")
    view = next(view for view in live.known_runs() if view["run"] == Path(folder).name)
    for sample in view["samples"]:
        kind, data = sample["image"].split(",")
        with Image.open(io.BytesIO(base64.b64decode(data))) as animation:
            assert kind.startswith("data:image/webp") and animation.n_frames == 5
    with Image.open(Path(folder) / "before_after.webp") as animation:
        assert animation.n_frames == 5
