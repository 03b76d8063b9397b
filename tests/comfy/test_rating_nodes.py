"""A person as the reward, pairs, and the settings of each method, in a ComfyUI's own process."""

from __future__ import annotations

import json
import sys

import pytest
import torch

TINY = "diffusers: tiny"
TRAIN = {
    "steps": 4, "batch": 4, "samples_per_prompt": 2, "sampler_steps": 3, "guidance": 2.0, "rank": 2,
    "evaluate_every": 100, "evaluation_samples": 4,
}  # fmt: skip


@pytest.fixture
def rated(run):
    """model, prompts and a person as the reward for RLR Train; every update asks."""
    (model,) = run("RLR_LoadCheckpoint", checkpoint=TINY)
    (prompts,) = run("RLR_Prompts", text="a red circle\na cat")
    (reward,) = run("RLR_Rate", updates_per_round=1)
    return {"model": model, "prompts": prompts, "reward": reward}


@pytest.fixture
def module(pack):
    """module(name): one of the pack's modules."""
    return lambda name: sys.modules[f"custom_nodes_ComfyUI-RLR.nodes.{name}"]


def blocked(outputs) -> bool:
    from comfy_execution.graph_utils import ExecutionBlocker

    return all(isinstance(output, ExecutionBlocker) for output in outputs)


def test_a_run_waits_without_running_and_goes_on_when_its_pictures_are_rated(
    run, rated, module, base, monkeypatch
):
    questions, live = module("questions"), module("live")
    folder = base / "output/rlr/asked"
    assert blocked(run("RLR_Train", run_name="asked", **rated, **TRAIN))
    (question,) = (q for q in questions.known_questions() if q["run"] == "asked")
    assert question["node"] == "5" and question["round"] == 1 and question["marks"] == [None] * 4
    assert question["pictures"][3] == {
        "filename": "003.png", "subfolder": "rlr/asked/ratings/round_0001", "type": "output",
    }  # fmt: skip
    view = live.known_runs()[-1]
    assert view["state"] == "waiting" and "4 pictures wait for your ratings" in view["message"]

    questions.keep_marks("asked", 1, [1, None, -1, None])
    unanswered = questions.answered("asked")
    with monkeypatch.context() as patched:
        patched.setattr("rlr_core.diffusion.models.loading.load_model", _never)
        assert blocked(run("RLR_Train", run_name="asked", **rated, **TRAIN))
    assert questions.known_questions()[-1]["marks"] == [1, None, -1, None]

    questions.finish("asked", 1)
    assert json.loads((folder / "ratings/round_0001/scores.json").read_text()) == [1, 0, -1, 0]
    assert questions.answered("asked") != unanswered, "ComfyUI would answer from its cache"
    assert blocked(run("RLR_Train", run_name="asked", **rated, **TRAIN))
    assert questions.known_questions()[-1]["round"] == 2
    for number in (2, 3, 4):
        questions.keep_marks("asked", number, [1, -1, 1, -1])
        questions.finish("asked", number)
        outputs = run("RLR_Train", run_name="asked", **rated, **TRAIN)
    assert outputs[0].metadata["rlr_steps"] == "4" and outputs[0].metadata["rlr_reason"] == "finished"
    assert not [q for q in questions.known_questions() if q["run"] == "asked"]


def _never(*arguments, **keywords):
    raise AssertionError("a run that waits was loaded")


def test_a_waiting_run_ends_where_it_is_when_steps_are_lowered(run, rated, module):
    run("RLR_Train", run_name="enough", **rated, **TRAIN)
    module("questions").keep_marks("enough", 1, [1, -1, 1, -1])
    module("questions").finish("enough", 1)
    assert blocked(run("RLR_Train", run_name="enough", **rated, **TRAIN))
    lora, *_ = run("RLR_Train", run_name="enough", **rated, **TRAIN | {"steps": 1})
    assert lora.metadata["rlr_steps"] == "1" and lora.metadata["rlr_reason"] == "finished"


def test_restart_goes_on_with_pictures_that_were_rated_and_else_begins_anew(run, rated, module, base):
    again = TRAIN | {"mode": "restart"}
    for expected in ("anew", "anew_2"):
        run("RLR_Train", run_name="anew", **rated, **again)
        assert (base / "output/rlr" / expected).is_dir()
    module("questions").keep_marks("anew_2", 1, [1, -1, 1, -1])
    module("questions").finish("anew_2", 1)
    run("RLR_Train", run_name="anew", **rated, **again)
    assert (base / "output/rlr/anew_2/ratings/round_0002").is_dir()
    assert not (base / "output/rlr/anew_3").exists()


@pytest.mark.parametrize(
    ("name", "number", "marks"),
    [
        ("../../x", 1, [1] * 4), ("/etc", 1, [1] * 4), ("nothing", 1, [1] * 4), ("refusing", 2, [1] * 4),
        ("refusing", 1, [1] * 3), ("refusing", 1, ["1"] * 4), ("refusing", 1, [True] * 4),
        ("refusing", 1, [float("nan")] * 4), ("refusing", 1, [1e9] * 4), ("refusing", -1, [1] * 4),
    ],
)  # fmt: skip
def test_marks_that_do_not_fit_are_refused_and_nothing_is_written(
    run, rated, module, base, name, number, marks
):
    from rlr_core.errors import UserError

    if not (base / "output/rlr/refusing").is_dir():
        run("RLR_Train", run_name="refusing", **rated, **TRAIN)
    before = sorted(base.rglob("*"))
    with pytest.raises(UserError):
        module("questions").keep_marks(name, number, marks)
    with pytest.raises(UserError, match="nothing to learn|does not ask|as a name"):
        module("questions").finish(name, number)
    assert sorted(base.rglob("*")) == before


def test_a_person_is_no_judge_and_rates_no_batch(run, rated):
    from rlr_core.errors import UserError

    with pytest.raises(UserError, match="cannot be the judge"):
        run("RLR_Train", run_name="judged", **rated, judge=rated["reward"], **TRAIN)
    with pytest.raises(UserError, match="nobody to ask"):
        run("RLR_ScoreImages", images=torch.rand(2, 16, 16, 3), reward=rated["reward"])


def test_a_person_and_a_score_together_ask_once(run, rated, module):
    from rlr_core.errors import UserError

    (brightness,) = run("RLR_Reward", reward="brightness")
    (both,) = run("RLR_CombineRewards", mode="sum", reward_1=rated["reward"], reward_2=brightness)
    assert blocked(run("RLR_Train", run_name="both", **rated | {"reward": both}, **TRAIN))
    assert module("questions").known_questions()[-1]["run"] == "both"
    with pytest.raises(UserError, match="One RLR Rate is enough"):
        run("RLR_CombineRewards", mode="sum", reward_1=rated["reward"], reward_2=rated["reward"])


# --- pairs ---


def test_pairs_are_chosen_by_click_become_a_file_and_are_learned_from(run, rated, module):
    pairs = module("pair_questions")
    pictures = torch.rand(6, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    inputs = {"images": pictures, "prompt": "a cat", "name": "clicked"}
    path, count = run("RLR_Preferences", **inputs)
    assert count == 0 and blocked([path])
    (question,) = (q for q in pairs.known_questions() if q["name"] == "clicked")
    names = [pair["name"] for pair in question["pairs"]]
    assert len(names) == 3 and question["decided"] == 0
    before = pairs.stamp("clicked")
    for name, choice in zip(names, ("right", "skip", "left"), strict=True):
        pairs.choose("clicked", name, choice)
    assert pairs.stamp("clicked") != before
    path, count = run("RLR_Preferences", **inputs)  # the same pictures: no new pairs
    assert count == 2 and pairs.known_questions()[-1]["pairs"] == []

    from rlr_core.methods.pairs import load_pairs

    found = load_pairs(path)
    expected = (pictures.movedim(-1, 1) * 255).round()
    assert torch.equal(found.preferred.float(), expected[[1, 4]])
    assert torch.equal(found.rejected.float(), expected[[0, 5]])
    (reward,) = run("RLR_Reward", reward="brightness")
    for given in (path, "clicked"):
        (method,) = run("RLR_Method", method="dpo", pairs=given)
        assert method.pairs == path
    lora, *_ = run("RLR_Train", run_name="pairs", **rated | {"reward": reward}, method=method, **TRAIN)
    assert lora.metadata["rlr_method"] == "dpo"


def test_pairs_may_be_chosen_by_a_reward_one_of_each_batch(run):
    from rlr_core.methods.pairs import load_pairs

    (reward,) = run("RLR_Reward", reward="brightness")
    dark, light = torch.full((2, 16, 16, 3), 0.2), torch.full((2, 24, 24, 3), 0.8)
    path, count = run(
        "RLR_Preferences", images=dark, images_b=light, prompt="x\ny", name="scored", choose="by reward",
        reward=reward,
    )  # fmt: skip
    found = load_pairs(path)
    assert count == 2 and found.prompts == ["x", "y"] and found.preferred.shape == (2, 3, 24, 24)
    assert (found.preferred > found.rejected).all()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ".x", ""])
def test_pairs_stay_in_their_folder(run, module, base, name):
    from rlr_core.errors import UserError

    before = sorted(base.rglob("*"))
    with pytest.raises(UserError):
        run("RLR_Preferences", images=torch.rand(2, 16, 16, 3), name=name)
    with pytest.raises(UserError):
        module("pair_questions").choose(name, "x", "left")
    if name:
        with pytest.raises(UserError):
            run("RLR_Method", method="dpo", pairs=name)
    assert sorted(base.rglob("*")) == before


# --- methods ---


def test_every_setting_of_every_method_has_its_input_and_no_other_is_read(module, run):
    from rlr_core.config import MethodConfig
    from rlr_core.methods import METHODS

    method = module("method")
    inputs = method.inputs_of()
    assert list(inputs) == list(METHODS)
    for name in METHODS:
        read = {s.key for s in MethodConfig.settings() if name in s.methods} - {"method.start_range"}
        assert read <= {method.SETTINGS[i] for i in inputs[name] if i in method.SETTINGS}, name
        (made,) = run("RLR_Method", method=name)
        assert made == MethodConfig(name)
    assert "nft_beta" in inputs["nft"] and "nft_beta" not in inputs["awm"]


def test_a_lora_for_a_part_of_the_steps_is_put_on_for_that_part(module, monkeypatch):
    from rlr_core.errors import UserError

    lora = module("lora_patches")
    weights = module("sockets").LoraWeights({}, {"rlr_start_percent": "0", "rlr_end_percent": "0.5"})
    asked = []
    monkeypatch.setattr(lora, "patch", lambda *arguments: asked.append("all") or (None, None))
    monkeypatch.setattr(lora, "low_rank_changes", lambda model, weights: {})
    monkeypatch.setattr(lora, "sigma_at", lambda model, percent: asked.append(percent) or percent)
    monkeypatch.setattr(lora, "clone_with_wrapper", lambda *arguments: "patched")
    assert lora.put_on("MODEL", None, weights) == ("patched", None) and asked == [0, 0.5]
    asked.clear()
    lora.put_on("MODEL", None, weights, start_percent=0.2, end_percent=0.9)
    assert asked == [0.2, 0.5]
    asked.clear()
    lora.put_on("MODEL", None, dict(weights))
    assert asked == ["all"]
    with pytest.raises(UserError, match="trained for the steps from 0 to 0.5"):
        lora.put_on("MODEL", None, weights, start_percent=0.6)
