"""A reward whose scores have to come from outside: the run waits for them without running."""

from __future__ import annotations

import pytest
import torch
from runs import redness, rows, small_config, weights
from tiny_flow import TinyFlow

from rlr_core.common.pending import Pending
from rlr_core.config import config_from_dict
from rlr_core.rewards.base import Reward
from rlr_core.training.trainer import train


class Person(Reward):
    """Rates pictures between runs: what it was asked about is answered only by `answer`."""

    name = "person"
    differentiable = False
    whole_batch = True
    evaluable = False

    def __init__(self):
        self.asked: list[torch.Tensor] = []
        self.answers: list[torch.Tensor] = []
        self.position = 0
        self.surrogate = None

    def begin_update(self):
        self.position, self.asked = 0, []

    def score(self, images, prompts):
        if not self.answers:
            self.asked.append(redness(images, prompts).detach())
            raise Pending("A person is asked about the pictures.")
        scores = self.answers[self.position]
        self.position += 1
        assert torch.equal(scores, redness(images, prompts)), "another batch than the one that was rated"
        return scores

    def after_update(self):
        self.answers = []

    def answer(self):
        self.answers = self.asked


def settings(out, **changes):
    judge = {"evaluation": {"samples": 4, "every": 100, "batch": 4}}
    return config_from_dict(small_config(out, steps=3, **judge, **changes))


def redness_judge(images, prompts):
    return redness(images, prompts)


@pytest.mark.slow
def test_a_run_that_waits_goes_on_as_if_the_scores_had_been_there(tmp_path):
    """The whole batch is asked about at once; the update that is taken up again is the same, bit by bit."""
    config = settings(tmp_path / "waiting")
    person, resume, ends = Person(), False, []
    for _ in range(10):
        model = TinyFlow()
        result = train(model, person, config, judge=redness_judge, resume=resume)
        assert not model.has_adapter() or result.reason == "finished"
        ends.append(result.reason)
        if result.reason == "finished":
            break
        assert len(person.asked) == 2  # two micro-batches of four: all of the batch
        person.answer()
        resume = True
    assert ends == ["A person is asked about the pictures."] * 3 + ["finished"]

    class Knows(Person):
        def score(self, images, prompts):
            return redness(images, prompts).detach()

    assert not result.waiting
    straight = settings(tmp_path / "straight")
    train(TinyFlow(), Knows(), straight, judge=redness_judge)
    for name, tensor in weights(tmp_path / "straight").items():
        assert torch.equal(tensor, weights(tmp_path / "waiting")[name])
    assert learned(tmp_path / "straight") == learned(tmp_path / "waiting")


def learned(folder):
    """A run's metrics without what asking twice costs."""
    return [{k: v for k, v in row.items() if not k.startswith("evaluations/")} for row in rows(folder)]


def test_a_run_that_waits_has_its_state_and_its_lora_so_far(tmp_path):
    config = settings(tmp_path / "run")
    result = train(TinyFlow(), Person(), config, judge=redness_judge)
    assert result.waiting and result.step == 0 and (tmp_path / "run/state/state.safetensors").is_file()
    assert (tmp_path / "run/lora.safetensors").is_file()
