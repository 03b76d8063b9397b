"""What a run writes down is what ran, whoever handed it over; and a run that fails leaves no trace."""

from __future__ import annotations

import pytest
import torch
from runs import redness, small_config
from tiny_flow import TinyFlow

from rlr_core.config import config_from_dict, load_config
from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.training.results import read_results
from rlr_core.training.trainer import Trainer, train


def short(out, **changes):
    evaluation = {"samples": 4, "every": 100, "batch": 4}
    return config_from_dict(small_config(out, steps=1, evaluation=evaluation, **changes))


def warmth(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def test_a_function_is_recorded_by_its_name_and_not_as_the_configs_reward(tmp_path):
    config = short(tmp_path / "run", reward="aesthetic")
    train(TinyFlow(), warmth, config)
    written = load_config(tmp_path / "run/config.yaml")
    assert written.reward == "python:warmth" and written.model == "python:tiny-flow-0"
    assert "reward python:warmth" in read_results(tmp_path / "run").summary()
    assert config.reward == "aesthetic", "the caller's own config was changed"


def test_resume_sees_that_another_reward_is_handed_over(tmp_path):
    train(TinyFlow(), warmth, short(tmp_path / "run"))
    with pytest.raises(UserError, match="other settings: reward"):
        train(TinyFlow(), redness, short(tmp_path / "run"), resume=True)
    with pytest.raises(UserError, match="other settings: model"):
        train(TinyFlow(seed=1), warmth, short(tmp_path / "run"), resume=True)
    assert train(TinyFlow(), warmth, short(tmp_path / "run"), resume=True).reason == "finished"


def test_a_loaded_reward_is_recorded_with_its_options(tmp_path):
    config = short(tmp_path / "run", reward="aesthetic")
    train(TinyFlow(), load_reward("target_color", color="red"), config, judge=load_reward("brightness"))
    written = load_config(tmp_path / "run/config.yaml")
    assert (written.reward, written.reward_options) == ("target_color", {"color": "red"})
    assert (written.evaluation.judge, written.evaluation.judge_options) == ("brightness", {})


def test_a_name_takes_the_configs_options_if_it_is_the_configs(tmp_path):
    def config(name):
        options = {"reward": "target_color", "reward_options": {"color": "red"}}
        return short(tmp_path / name, **options)

    same = Trainer(TinyFlow(), "target_color", config("a"))
    other = Trainer(TinyFlow(), "brightness", config("b"))
    assert torch.equal(same.parts.reward.color, load_reward("target_color", color="red").color)
    assert (other.config.reward, other.config.reward_options) == ("brightness", {})


def test_a_run_that_raises_leaves_the_model_without_an_adapter(tmp_path):
    model = TinyFlow()
    calls = 0

    def check():
        nonlocal calls
        calls += 1
        if calls > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, redness, short(tmp_path / "run"), check=check)
    assert not model.has_adapter()
    assert train(model, redness, short(tmp_path / "run"), resume=True).reason == "finished"


def test_a_setup_that_fails_leaves_the_model_without_an_adapter(tmp_path):
    model = TinyFlow()
    with pytest.raises(UserError, match="needs a differentiable reward"):
        train(
            model,
            lambda images, prompts: [0.0] * len(prompts),
            short(tmp_path / "run", method={"name": "full"}),
        )
    assert not model.has_adapter()


def test_a_batch_carries_its_own_texts(tmp_path):
    """Once they were those of the batch drawn last."""
    trainer = Trainer(TinyFlow(), redness, short(tmp_path / "run"))
    first = trainer.parts.batches.draw(0)
    texts = list(first.prompts)
    trainer.parts.batches.draw(1)
    assert list(first.prompts) == texts
    assert first.texts(torch.tensor([2, 0])) == [texts[2], texts[0]]


def test_a_state_of_another_version_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("rlr_core.training.checkpoint.STATE_VERSION", 1)
    train(TinyFlow(), redness, short(tmp_path / "run"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="saved by another version of rlr_core"):
        train(TinyFlow(), redness, short(tmp_path / "run"), resume=True)


@pytest.mark.slow
def test_every_optimizer_step_of_an_update_has_its_norm_in_the_metrics(tmp_path):
    method = {"name": "ddpo", "inner_epochs": 3}
    row = train(TinyFlow(), redness, short(tmp_path / "run", method=method)).metrics[-1]
    assert row["gradient/norm"] > 0 and row["gradient/norm_inner"] > 0


def test_a_run_starts_from_a_lora_file_and_ends_with_its_ranks(tmp_path):
    first = train(TinyFlow(), redness, short(tmp_path / "first"))
    file = first.lora.save(tmp_path / "first.safetensors")
    lora = {"start_from": str(file), "rank": 7}
    trainer = Trainer(TinyFlow(), redness, short(tmp_path / "second", lora=lora))
    expected, begun = first.lora.adapter.state_dict(), trainer.parts.adapter.state_dict()
    assert expected.keys() == begun.keys()
    assert all(torch.equal(begun[name], tensor) for name, tensor in expected.items())
    trainer.update()
    assert any(
        not torch.equal(begun[name], p) for name, p in trainer.parts.adapter.named_parameters().items()
    )


def test_a_lora_file_of_another_model_is_refused_and_leaves_the_model_alone(sd, tmp_path):
    file = train(TinyFlow(), redness, short(tmp_path / "run")).lora.save(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="was made for another model"):
        Trainer(sd, redness, short(tmp_path / "other", lora={"start_from": str(file)}))
    assert not sd.has_adapter()


def test_frames_are_asked_of_the_family(tmp_path):
    with pytest.raises(UserError, match="makes pictures of one frame"):
        Trainer(TinyFlow(), redness, short(tmp_path / "run", sampler={"frames": 5}))


def test_options_that_are_objects_are_written_by_what_they_are():
    """So that another question to the same object is another run."""
    from rlr_core.training.setup import described

    class Answerer:
        pass

    assert described("brightness", {"a": [1, "b", None]}) == ("brightness", {"a": [1, "b", None]})
    parts = {"rewards": [{"vlm": {"model": Answerer(), "question": "Is it red?"}}, "brightness"]}
    name, options = described("combine", parts)
    assert name == "python:combine"
    assert options == {
        "rewards": [{"vlm": {"model": "python:Answerer", "question": "Is it red?"}}, "brightness"]
    }
