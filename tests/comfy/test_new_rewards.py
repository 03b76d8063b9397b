"""The rewards that ask a text encoder, a folder or a server, in their nodes."""

from __future__ import annotations

import sys

import pytest

MODULE = "custom_nodes_ComfyUI-RLR.nodes."


@pytest.fixture
def sources(pack):
    return sys.modules[MODULE + "reward_sources"]


@pytest.fixture
def answers(pack, monkeypatch):
    """ClipAnswerer replaced by one that says how bright a picture is."""
    import importlib

    class Bright:
        differentiable = False

        def __init__(self, clip):
            self.clip = clip

        def yes_no_logits(self, images, questions):
            return images.mean((1, 2, 3)) * 4

    module = importlib.import_module(MODULE + "native.answers")
    monkeypatch.setattr(module, "ClipAnswerer", Bright)
    return Bright


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:11434/v1", "https://localhost/v1", "http://[::1]:8000", " http://127.8.9.1:1/v1 "],
)
def test_a_server_on_this_machine_is_asked(sources, run, address):
    assert sources.refused(address) == ""
    (reward,) = run("RLR_Reward", reward="http", address=address, server_model="m")
    assert reward.options["address"] == address and reward.options["model"] == "m"
    assert "timeout" not in reward.options and "{prompt}" in reward.options["instruction"]


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/v1", "http://10.0.0.7:80/v1", "http://0.0.0.0/v1", "http://localhost.example.com",
        "http://127.0.0.1@example.com/", "http://example.com\\@localhost/", "http://2130706433/",
        "file:///etc/passwd", "", "http://", "http://[::1", "//localhost", "http://local host/",
    ],
)  # fmt: skip
def test_a_workflow_sends_pictures_nowhere_else(sources, run, address):
    from rlr_core.errors import UserError

    assert sources.refused(address)
    with pytest.raises(UserError):
        run("RLR_Reward", reward="http", address=address)


def test_whoever_starts_comfyui_may_allow_a_host(sources, monkeypatch):
    said = sources.refused("https://Scores.example.com:8443/v1")
    assert "would send pictures to scores.example.com" in said
    assert "RLR_HTTP_REWARD_HOSTS=scores.example.com" in said
    monkeypatch.setenv("RLR_HTTP_REWARD_HOSTS", "other.example.com, scores.example.com")
    assert sources.refused("https://Scores.example.com:8443/v1") == ""
    assert sources.refused("https://example.com/v1")


def test_another_reward_does_not_mind_an_address(run):
    (reward,) = run("RLR_Reward", reward="brightness", address="http://example.com")
    assert reward.options == {}


def test_vlm_takes_a_folder_of_the_list_and_no_other(run, base, sources):
    from rlr_core.errors import UserError

    folder = base / "models/reward_models/My-VL"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert "My-VL" in sources.model_folders()
    (reward,) = run("RLR_Reward", reward="vlm", model_folder="My-VL", question="Is it red?")
    assert reward.options == {"question": "Is it red?", "model": str(folder)}
    with pytest.raises(UserError, match="not in its list"):
        run("RLR_Reward", reward="vlm", model_folder="../My-VL")
    with pytest.raises(UserError, match="no model folder"):
        sources.model_folder_path("../My-VL")


def test_vlm_by_a_text_encoder_trains_and_goes_on(run, sockets_of, answers, base):
    """The object is in no config; the question that it is asked is."""
    import yaml

    small = {
        "steps": 1, "batch": 4, "samples_per_prompt": 2, "sampler_steps": 3, "guidance": 2.0, "rank": 2,
        "evaluation_samples": 2,
    }  # fmt: skip
    (reward,) = run("RLR_Reward", reward="vlm", clip=object(), question="Is it red?")
    assert isinstance(reward.options["model"], answers)
    sockets = sockets_of | {"reward": reward, "judge": reward}
    folder = run("RLR_Train", run_name="by-clip", **sockets, **small)[4]
    config = yaml.safe_load((base / "output/rlr/by-clip/config.yaml").read_text())
    assert config["reward"] == config["evaluation"]["judge"] == "python:vlm"
    assert config["reward_options"] == {"question": "Is it red?", "model": "python:Bright"}
    (again,) = run("RLR_Reward", reward="vlm", clip=object(), question="Is it red?")
    more = sockets_of | {"reward": again, "judge": again}
    assert run("RLR_Train", run_name="by-clip", **more, **small | {"steps": 2})[4] == folder
    (other,) = run("RLR_Reward", reward="vlm", clip=object(), question="Is it blue?")
    others = sockets_of | {"reward": other, "judge": other}
    assert run("RLR_Train", run_name="by-clip", **others, **small)[4] == f"{folder}_2"


def test_caps_and_within_prompts_reach_the_combination(run, answers):
    from rlr_core.errors import UserError

    (bright,) = run("RLR_Reward", reward="brightness")
    (asked,) = run("RLR_Reward", reward="vlm", clip=object())
    parts = {"reward_1": bright, "cap_1": "0.5", "reward_2": asked}
    (both,) = run("RLR_CombineRewards", within_prompts=True, **parts)
    made = both.load()
    assert made.within_prompts and made.caps == {"brightness": 0.5, "vlm": None}
    name, options = both.described
    assert name == "python:combine" and options["caps"] == [0.5, None]
    assert options["rewards"][1]["vlm"]["model"] == "python:Bright"
    (more,) = run("RLR_CombineRewards", within_prompts=True, reward_1=both, reward_2=bright, cap_2="1e-1")
    assert more.options["caps"] == [0.5, None, 0.1]
    for odd in ("much", "nan", "inf"):
        with pytest.raises(UserError, match="cap_1 is"):
            run("RLR_CombineRewards", reward_1=bright, cap_1=odd)
    with pytest.raises(UserError, match="combined itself"):
        run("RLR_CombineRewards", within_prompts=True, reward_1=both, cap_1="1")
    with pytest.raises(UserError, match="within_prompts"):
        run("RLR_CombineRewards", reward_1=both)
