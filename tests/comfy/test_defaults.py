"""Nodes that are only put down and connected: what RLR Train does, and what is said when Run is pressed."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

TINY = "diffusers: tiny"
SHORT = {"steps": 1, "batch": 4, "sampler_steps": 2}
FILES = {
    "sdxl_by_name_only.safetensors": ({"a": (1,)}, "no model that is known"),
    "flux.safetensors": ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "a Flux model in one file"),
    "wan.safetensors": ({"blocks.0.cross_attn.q.weight": (4, 4)}, "the transformer of Wan alone"),
    "z.safetensors": ({"noise_refiner.0.attention.qkv.weight": (4, 4)}, "the transformer of Z-Image alone"),
    "lora.safetensors": ({"x.lora_down.weight": (4, 4)}, "a LoRA"),
}
"""A checkpoint file -> its tensors, and what it is called."""


@pytest.fixture
def module(pack):
    """module(name): one of the pack's modules."""
    root = pack["RLR_Train"].__module__.rpartition(".")[0]
    return lambda name: importlib.import_module(f"{root}.{name}")


@pytest.fixture
def config_of(pack, run, module):
    """config_of(checkpoint, **inputs): what RLR Train makes of nodes with all defaults but these."""

    def config(checkpoint, **inputs):
        (model,) = run("RLR_LoadCheckpoint", checkpoint=checkpoint)
        (prompts,) = run("RLR_Prompts")
        (reward,) = run("RLR_Reward")
        given = {"model": model, "prompts": prompts, "reward": reward} | inputs
        return module("train").config_from(
            module("schema").checked(pack["RLR_Train"].define_schema().inputs, given)
        )

    return config


@pytest.mark.parametrize("checkpoint", ["demo (built in)", TINY])
def test_four_nodes_with_all_defaults_train(run, checkpoint, monkeypatch):
    """Only shorter than they would."""
    from rlr_core.demo import scenes

    monkeypatch.setattr(scenes, "held_out_prompts", lambda: scenes.training_prompts()[:4])
    (model,) = run("RLR_LoadCheckpoint", checkpoint=checkpoint)
    (prompts,) = run("RLR_Prompts")
    (reward,) = run("RLR_Reward")
    own = {"evaluation_samples": 2}
    outputs = run(
        "RLR_Train", model=model, prompts=prompts, reward=reward, run_name=checkpoint[:4], **SHORT, **own
    )
    lora = outputs[0]
    assert lora.metadata["rlr_steps"] == "1"
    assert any(key.endswith("lora_up.weight") and value.abs().sum() > 0 for key, value in lora.items())
    (drawn,) = run("RLR_Sample", model=model, prompts=prompts, steps=2, most_prompts=1)
    assert drawn.std() > 0


def test_defaults_follow_the_model_and_the_judge(config_of, run):
    from rlr_core.config import MethodConfig

    demo, other = config_of("demo (built in)"), config_of(TINY)
    assert (demo.reward, other.reward) == ("demo", "saturation")
    assert "a photo of a cat" not in demo.prompts and "a photo of a cat" in other.prompts
    assert demo.evaluation.prompts and not set(demo.evaluation.prompts) & set(demo.prompts)
    assert (demo.gradient_checkpointing, other.gradient_checkpointing) == (False, True)
    assert (demo.sampler.steps, other.sampler.steps) == (6, 20)
    assert (demo.optimizer.learning_rate, other.optimizer.learning_rate) == (2e-3, 3e-4)
    assert demo.method == other.method == MethodConfig()
    assert not demo.evaluation.stop_when_judge_drops
    (judge,) = run("RLR_Reward")
    judged = config_of("demo (built in)", judge=judge)
    assert judged.evaluation.judge == "judge" and judged.evaluation.stop_when_judge_drops


def test_what_is_set_stands(config_of, run):
    for name, value, read in [
        ("eta", 0.0, lambda c: c.sampler.eta),
        ("ema_decay", 0.0, lambda c: c.optimizer.ema_decay),
        ("max_grad_norm", 0.0, lambda c: c.optimizer.max_grad_norm),
        ("warmup", 0, lambda c: c.optimizer.warmup),
        ("micro_batch", 3, lambda c: c.micro_batch),
        ("samples_per_prompt", 8, lambda c: c.samples_per_prompt),
        ("width", 64, lambda c: c.sampler.width),
    ]:
        (settings,) = run("RLR_TrainSettings", **{name: value})
        assert read(config_of("demo (built in)", settings=settings)) == value, name
        assert read(config_of("demo (built in)")) != value, name
    (on,) = run("RLR_TrainSettings", gradient_checkpointing="on", stop_when_judge_drops="on")
    config = config_of("demo (built in)", settings=on)
    assert config.gradient_checkpointing and config.evaluation.stop_when_judge_drops


def test_a_size_of_the_list_is_width_by_height(config_of):
    sampler = config_of(TINY, size="512 x 768").sampler
    assert (sampler.width, sampler.height) == (512, 768)


@pytest.mark.parametrize(
    ("batch", "each"), [(16, 4), (8, 4), (4, 2), (6, 3), (10, 2), (9, 3), (7, 1), (3, 3), (2, 2), (1, 1)]
)
def test_pictures_per_prompt_leave_two_prompts_where_they_can(module, batch, each):
    assert module("defaults").pictures_per_prompt(batch) == each and batch % each == 0


def test_auto_is_for_training_alone(run):
    from rlr_core.errors import UserError

    (auto,) = run("RLR_Reward")
    with pytest.raises(UserError, match="choose what the pictures are scored by"):
        run("RLR_ScoreImages", images=torch.rand(1, 16, 16, 3), reward=auto)
    with pytest.raises(UserError, match="reward_1 is an RLR Reward at auto"):
        run("RLR_CombineRewards", reward_1=auto)


def test_fewer_steps_than_a_run_has_had_are_said(run, module):
    (model,) = run("RLR_LoadCheckpoint", checkpoint=TINY)
    (prompts,), (reward,) = run("RLR_Prompts"), run("RLR_Reward")
    wired = {"model": model, "prompts": prompts, "reward": reward, "run_name": "lowered"}
    run("RLR_Train", **wired, **SHORT | {"steps": 2}, evaluation_samples=2)
    lora, *_ = run("RLR_Train", **wired, **SHORT, evaluation_samples=2)
    assert lora.metadata["rlr_steps"] == "2"
    message = module("live").known_runs()[-1]["message"]
    assert "has had 2 updates already, more than the 1 of steps" in message and "restart" in message


# --- what is said when Run is pressed ---


@pytest.fixture
def refusal(pack, module):
    """refusal(workflow, node): what validation says of a node of an API workflow; '' where it passes."""
    from comfy_process import hidden_of

    def said(workflow, number):
        module("queued").keep({"prompt": workflow})
        inputs = workflow[number]["inputs"]
        node = pack[workflow[number]["class_type"]].PREPARE_CLASS_CLONE(hidden_of(number))
        takes = node.validate_inputs.__func__.__code__.co_varnames[1:2]
        values = {name: None if isinstance(inputs[name], list) else inputs[name] for name in takes}
        answer = node.validate_inputs(**values)
        return "" if answer is True else answer

    return said


def graph(**changes):
    """Four nodes; changes by class, such as RLR_Train={...}."""
    nodes = {
        "1": ("RLR_LoadCheckpoint", {"checkpoint": "demo (built in)"}),
        "2": ("RLR_Prompts", {"text": "a cat", "file": "none: the text below"}),
        "3": ("RLR_Reward", {"reward": "auto", "weights": "auto", "second_file": "auto"}),
        "4": ("RLR_Train", {"batch": 16, "model": ["1", 0], "prompts": ["2", 0], "reward": ["3", 0],
                            "settings": ["5", 0]}),
        "5": ("RLR_TrainSettings", {"samples_per_prompt": 0}),
    }  # fmt: skip
    return {
        number: {"class_type": kind, "inputs": inputs | changes.get(kind, {})}
        for number, (kind, inputs) in nodes.items()
    }


def test_four_connected_nodes_pass(refusal):
    assert [refusal(graph(), number) for number in "1234"] == [""] * 4


def test_a_batch_that_cannot_be_divided_is_said_on_rlr_train(refusal):
    said = refusal(graph(RLR_Train={"batch": 10}, RLR_TrainSettings={"samples_per_prompt": 4}), "4")
    assert said == (
        "batch is 10, which cannot be divided by the 4 samples per prompt of RLR Train Settings: set batch "
        "to 12, or samples per prompt to 0."
    )
    assert refusal(graph(RLR_Train={"batch": 12}, RLR_TrainSettings={"samples_per_prompt": 4}), "4") == ""
    assert "between 1 and 1024" in refusal(graph(RLR_Train={"batch": 4096}), "4")


def test_the_demos_reward_on_another_model_is_said_on_rlr_train(refusal):
    changes = {"RLR_LoadCheckpoint": {"checkpoint": TINY}, "RLR_Reward": {"reward": "demo"}}
    assert "knows the built-in model's pictures only" in refusal(graph(**changes), "4")
    assert refusal(graph(**changes | {"RLR_Reward": {"reward": "auto"}}), "4") == ""


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_empty_prompts_are_said_on_rlr_prompts(refusal, text):
    assert "no prompts" in refusal(graph(RLR_Prompts={"text": text}), "2")
    assert refusal(graph(RLR_Prompts={"text": text, "file": "demo captions (built in)"}), "2") == ""


def test_missing_weights_are_said_on_rlr_reward_in_its_own_words(refusal):
    said = refusal(graph(RLR_Reward={"reward": "aesthetic"}), "3")
    assert "aesthetic needs sac+logos" in said and "Get it from https://" in said
    assert "press R, or choose another file at weights" in said and "weights=" not in said
    said = refusal(graph(RLR_Reward={"reward": "vlm"}), "3")
    assert "vlm needs Qwen3-VL" in said and "choose another file" not in said
    assert "not in the list" in refusal(graph(RLR_Reward={"reward": "purple"}), "3")


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_of_another_kind_is_named_on_rlr_load_checkpoint(refusal, base, file):
    from safetensors.torch import save_file

    shapes, name = FILES[file]
    path = base / "models/checkpoints" / file
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    try:
        said = refusal(graph(RLR_LoadCheckpoint={"checkpoint": file}), "1")
        assert name in said
        if name.startswith(("a Flux", "the transformer")):
            assert "use RLR From ComfyUI" in said and "diffusers folder" not in said
    finally:
        path.unlink()


def test_missing_packages_are_said_on_rlr_reward(refusal, monkeypatch):
    from rlr_core.rewards.extras import Extra

    monkeypatch.setattr(Extra, "missing", lambda extra: f"pip install {extra.packages[0]}")
    said = refusal(graph(RLR_Reward={"reward": "text_in_image"}), "3")
    assert said == "text_in_image needs packages in ComfyUI's own Python: pip install rapidocr."


# --- which inputs are shown ---


def test_a_reward_shows_its_own_inputs_and_no_other(pack, module):
    from rlr_core.rewards import REWARDS

    rewards = module("rewards")
    shown = rewards.inputs_of()
    known = {i.id for i in pack["RLR_Reward"].GET_SCHEMA().inputs} - {"reward"}
    assert set(shown) == set(rewards.CHOICES) and set(shown) - {"auto"} <= set(REWARDS)
    assert set().union(*shown.values()) == known, "an input that no reward reads"
    assert shown["auto"] == shown["demo"] == shown["brightness"] == []
    assert shown["target_color"] == ["color"] and shown["jpeg_compressibility"] == ["quality"]
    assert shown["vlm"] == ["question", "checkpointing"] and "http" not in shown
    assert shown["aesthetic"] == ["weights", "second_file", "checkpointing"]
    assert shown["target_picture"] == ["second_file", "target"]
    json.dumps(shown)
