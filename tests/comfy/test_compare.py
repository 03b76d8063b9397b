"""RLR Compare on the built-in model and on a tiny one of diffusers' layout."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from comfy_process import output_of

MODULE = "custom_nodes_ComfyUI-RLR.nodes.compare"
FEW = {"most_prompts": 3, "per_prompt": 2, "steps": 2, "guidance": 1.0}


@pytest.fixture
def module(pack):
    return sys.modules.get(MODULE) or __import__(MODULE, fromlist=["*"])


@pytest.fixture(scope="session")
def brighter(pack, base):
    """A LORA_MODEL for the demo whose pictures are brighter: trained for it in a few large updates."""
    from comfy_process import execute_in

    run = execute_in(pack)
    (model,) = run("RLR_LoadCheckpoint", checkpoint="demo (built in)")
    (prompts,) = run("RLR_Prompts")
    (reward,) = run("RLR_Reward", reward="brightness")
    trained = run(
        "RLR_Train", run_name="brighter", model=model, prompts=prompts, reward=reward, steps=4, batch=8,
        sampler_steps=3, guidance=1.0, learning_rate=3e-3, evaluation_samples=2, ema_decay=0.0,
    )  # fmt: skip
    return trained


@pytest.fixture
def parts(run, brighter):
    (model,) = run("RLR_LoadCheckpoint", checkpoint="demo (built in)")
    (prompts,) = run("RLR_Prompts")
    (reward,) = run("RLR_Reward", reward="brightness")
    return {"model": model, "lora": brighter[0], "prompts": prompts, "rewards": reward}


def test_a_lora_that_brightens_wins_at_brightness(pack, parts):
    output = output_of(pack, "RLR_Compare", **parts, **FEW | {"most_prompts": 8})
    grid, told = output.args
    assert output.ui["text"] == [told]
    assert grid.ndim == 4 and grid.shape[0] == 1 and grid.shape[-1] == 3 and grid.std() > 0.05
    first, base, lora = told.splitlines()
    assert first.startswith("16 pictures of 8 prompts each")
    before, after = (float(re.search(r"(?:base|LoRA:) (0\.\d+)", line)[1]) for line in (base, lora))
    wins = re.search(r"wins (\d+) % \[(\d+), (\d+)\]", lora)
    assert after > before and int(wins[1]) > 80 and int(wins[2]) <= int(wins[1]) <= int(wins[3])
    assert lora.endswith("better")


def test_the_scores_are_those_of_the_engines_own_pictures(run, parts, module):
    """Of the held-out prompts, evenly taken, and the seeds that an evaluation draws."""
    from rlr_core.config import SamplerConfig
    from rlr_core.demo.scenes import held_out_prompts
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.evaluation.measures import plan
    from rlr_core.evaluation.sampling import sample
    from rlr_core.rewards import load_reward

    told = run("RLR_Compare", **parts, **FEW, seed=5)[1]
    prompts = module.evenly(held_out_prompts(), 3)
    index, seeds = plan(3, 6, 5)
    sampler = SamplerConfig(steps=2, guidance=1.0, eta=0.0)
    drawn = [prompts[i] for i in index]
    with torch.inference_mode(False):
        images = sample(load_model("demo", "cpu"), drawn, seeds, sampler)
    mean = load_reward("brightness")(images, drawn).mean()
    assert float(re.search(r"base (0\.\d+)", told)[1]) == pytest.approx(float(mean), abs=2e-4)


def test_strengths_go_from_nothing_to_more(run, parts):
    told = run("RLR_Compare", **parts, **FEW, strengths="0, 0.5 1;1")[1]
    names = [line.partition(":")[0].strip() for line in told.splitlines()[2:]]
    assert names == ["LoRA at 0.5", "LoRA at 1"]
    means = [
        float(re.search(r"(?:base|LoRA at [\d.]+:) (0\.\d+)", line)[1]) for line in told.splitlines()[1:]
    ]
    assert means == sorted(means)


def test_two_loras_and_the_parts_of_a_combination(run, parts):
    half = type(parts["lora"])({k: v / 2 for k, v in parts["lora"].items()}, parts["lora"].metadata)
    (judge,) = run("RLR_Reward", reward="judge")
    (both,) = run("RLR_CombineRewards", reward_1=parts["rewards"], reward_2=judge)
    told = run("RLR_Compare", **parts | {"rewards": both}, **FEW, lora_b=half)[1]
    assert [line.split()[0] for line in told.splitlines()[1:]] == [
        "brightness:",
        "LoRA",
        "LoRA",
        "judge:",
        "LoRA",
        "LoRA",
    ]
    told = run("RLR_Compare", **parts, **FEW, lora_b=half, strengths="1")[1]
    assert "brightness: LoRA A " in told and "LoRA B: " in told and "base" not in told


def test_the_lora_that_a_model_wears_is_taken_off(run, parts, brighter):
    plain = run("RLR_Compare", **parts, **FEW)
    worn = run("RLR_Compare", **parts | {"model": brighter[1]}, **FEW)
    assert plain[1] == worn[1] and torch.equal(plain[0], worn[0])


def test_what_cannot_be_compared_is_one_sentence(run, parts, pack, sockets_of):
    from rlr_core.errors import UserError

    for strengths in ("", "much", "0, nan", "0, 50", ", ".join("123456789")):
        assert "strengths is" in pack["RLR_Compare"].validate_inputs(strengths=strengths)
        with pytest.raises(UserError, match="strengths is"):
            run("RLR_Compare", **parts, **FEW, strengths=strengths)
    assert pack["RLR_Compare"].validate_inputs(strengths="0, 1") is True
    with pytest.raises(UserError, match="nothing to compare with"):
        run("RLR_Compare", **parts, **FEW, strengths="1")
    with pytest.raises(UserError, match=r"^lora was made for another model"):
        run("RLR_Compare", **parts | {"model": sockets_of["model"]}, **FEW)
    with pytest.raises(UserError, match="more than 1024 pictures"):
        run("RLR_Compare", **parts, **FEW | {"most_prompts": 64, "per_prompt": 64})
    (rated,) = run("RLR_Rate")
    with pytest.raises(UserError, match="A person cannot be asked"):
        run("RLR_Compare", **parts | {"rewards": rated}, **FEW)


def test_cancel_is_heard_between_pictures(run, parts, monkeypatch):
    from comfy import model_management

    check, calls = model_management.throw_exception_if_processing_interrupted, []

    def cancel_once():
        calls.append(None)
        if len(calls) == 12:
            model_management.interrupt_current_processing()
        check()

    monkeypatch.setattr(model_management, "throw_exception_if_processing_interrupted", cancel_once)
    with pytest.raises(model_management.InterruptProcessingException):
        run("RLR_Compare", **parts, **FEW)
    assert len(calls) == 12
