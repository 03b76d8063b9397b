"""A reward that holds rewards passes on everything that a reward is asked and tells."""

import inspect
from pathlib import Path

import pytest
import torch
from reference.rewards_tiny import videos

from rlr_core.rewards import REWARDS, load_reward, reward_class
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import WeightFile
from rlr_core.rewards.wrapper import Wrapper

WRAPPERS = {"video": {"frames": 2}, "combine": {"normalize": False}}
"""Every reward of the list that holds rewards, with the options it is built with here."""
FILE = WeightFile("weights", ("probe.safetensors",), "a probe", "https://example.org/probe")


class Probe(Reward):
    """Notes every call; each attribute differs from the default."""

    name = "probe"
    differentiable = False
    needs_prompt = True
    range = (-3.0, 5.0)
    takes = "any"
    whole_batch = True
    evaluable = False
    files = (FILE,)

    def __init__(self, with_surrogate=True):
        self.calls = []
        self.surrogate = Probe(with_surrogate=False) if with_surrogate else None
        if self.surrogate is not None:
            self.surrogate.differentiable = True

    def score(self, images, prompts):
        self.calls.append(("score", list(prompts)))
        self.last = images.flatten(1).mean(1)
        return self.last

    def to(self, device):
        self.calls.append(("to", device))
        return self

    def prepare(self, prompts):
        self.calls.append(("prepare", prompts))

    def keep_in(self, folder):
        self.calls.append(("keep_in", folder))

    def begin_update(self):
        self.calls.append(("begin_update",))

    def after_update(self):
        self.calls.append(("after_update",))

    def parts(self):
        return {"half": self.last.detach() / 2}

    def state_dict(self):
        return {"memory": torch.tensor([7.0])}

    def load_state_dict(self, state):
        self.calls.append(("load_state_dict", state))


def wrap(name, reward):
    argument = {"reward": reward} if name == "video" else {"rewards": [reward]}
    return load_reward(name, **argument, **WRAPPERS[name])


def test_every_listed_reward_that_holds_rewards_is_a_wrapper_and_tested_here():
    listed = {name for name in REWARDS if issubclass(reward_class(name), Wrapper)}
    assert listed == set(WRAPPERS)
    holds = {n for n in REWARDS if {"reward", "rewards"} & set(inspect.signature(reward_class(n)).parameters)}
    assert holds == listed


def _moves(wrapper, probe, images):
    assert wrapper.to("meta") is wrapper
    assert probe.calls == probe.surrogate.calls == [("to", "meta")]


def _prepares(wrapper, probe, images):
    wrapper.prepare(["a", "b"])
    assert probe.calls == probe.surrogate.calls == [("prepare", ["a", "b"])]


def _keeps_in(wrapper, probe, images):
    wrapper.keep_in(Path("run"))
    assert probe.calls == [("keep_in", Path("run"))]


def _begins(wrapper, probe, images):
    wrapper.begin_update()
    assert probe.calls == [("begin_update",)]


def _ends(wrapper, probe, images):
    wrapper.after_update()
    assert probe.calls == [("after_update",)]


def _scores(wrapper, probe, images):
    expected = images[:, [0, -1]] if wrapper.takes == "videos" else images
    assert torch.allclose(wrapper.score(images, ["a", "b"]), expected.flatten(1).mean(1))


def _tells_parts(wrapper, probe, images):
    scores = wrapper(images, ["a", "b"])
    assert torch.allclose(wrapper.parts()["probe/half"], scores / 2)
    assert all(part.shape == (2,) for part in wrapper.parts().values())


def _keeps_state(wrapper, probe, images):
    assert wrapper.state_dict()["part.probe.memory"].item() == 7


def _restores_state(wrapper, probe, images):
    wrapper.load_state_dict(wrapper.state_dict())
    assert probe.calls == [("load_state_dict", {"memory": torch.tensor([7.0])})]


METHODS = {
    "to": _moves,
    "prepare": _prepares,
    "keep_in": _keeps_in,
    "begin_update": _begins,
    "after_update": _ends,
    "score": _scores,
    "parts": _tells_parts,
    "state_dict": _keeps_state,
    "load_state_dict": _restores_state,
}
ITS_OWN = {"name", "range", "takes", "surrogate", "source", "extra"}
"""What a wrapper decides for itself."""


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "method", [n for n, v in vars(Reward).items() if inspect.isfunction(v) and n[0] != "_"]
)
def test_every_method_of_a_reward_is_passed_on(wrapper, method):
    probe = Probe()
    METHODS[method](wrap(wrapper, probe), probe, videos(2))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("attribute", sorted(set(Reward.__annotations__) - ITS_OWN))
def test_every_attribute_of_a_reward_is_passed_on(wrapper, attribute):
    assert getattr(Probe, attribute) != getattr(Reward, attribute)
    assert getattr(wrap(wrapper, Probe()), attribute) == getattr(Probe, attribute)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_surrogate_is_the_same_wrapper_around_the_surrogate(wrapper):
    probe = Probe()
    whole = wrap(wrapper, probe)
    assert type(whole.surrogate) is type(whole) and whole.surrogate.differentiable
    whole.surrogate(videos(2), ["a", "b"])
    assert [call[0] for call in probe.surrogate.calls] == ["score"] and probe.calls == []
    assert wrap(wrapper, Probe(with_surrogate=False)).surrogate is None


def test_wrappers_in_wrappers_pass_on_to_the_innermost():
    probe = Probe()
    outer = load_reward("combine", rewards=[{"video": {"reward": load_reward("combine", rewards=[probe])}}])
    outer(videos(2), ["a", "b"])
    assert "video_combine/combine/probe/half" in outer.parts()
    outer.begin_update(), outer.after_update(), outer.load_state_dict(outer.state_dict())
    assert [call[0] for call in probe.calls] == ["score", "begin_update", "after_update", "load_state_dict"]


def test_what_was_observed_in_an_update_that_was_given_up_is_forgotten():
    images = videos(8)
    reward, other = (load_reward("combine", rewards=["brightness", "jpeg_compressibility"]) for _ in range(2))
    reward(1 - images, [""] * 8), reward.surrogate(1 - images, [""] * 8)
    for combined in (reward, other):
        combined.begin_update()
        combined(images, [""] * 8), combined.surrogate(images, [""] * 8)
        combined.after_update()
    for key, value in other.state_dict().items():
        assert torch.equal(reward.state_dict()[key], value), key


def test_a_saved_state_of_a_wrapper_restores_its_rewards_exactly():
    def build():
        ratings = load_reward("ratings", ask=lambda images, prompts: images.flatten(1).mean(1), clip=False)
        return load_reward("video", reward=ratings, frames=2)

    first, second = build(), build()
    for seed in range(3):
        first.begin_update()
        first(videos(4, seed=seed), [""] * 4)
        first.after_update()
    second.load_state_dict(first.state_dict())
    images = videos(4, seed=9)
    assert first.surrogate(images, [""] * 4).abs().max() > 0
    assert torch.equal(first.surrogate(images, [""] * 4), second.surrogate(images, [""] * 4))
