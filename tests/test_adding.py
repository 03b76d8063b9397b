"""A new method, reward or family is one file and one line: each is added here and trained with."""

from __future__ import annotations

import sys
import types

import pytest
from command_line import train as train_arguments
from runs import redness, small_config
from tiny_flow import TinyFlow, write_tiny_flow

from rlr_core.config import config_from_dict
from rlr_core.diffusion.models.loading import FAMILIES
from rlr_core.gradients.plan import Plan
from rlr_core.methods import METHODS
from rlr_core.methods.base import WalkMethod
from rlr_core.rewards import REWARDS, Entry
from rlr_core.rewards.base import Reward
from rlr_core.training.trainer import train


class LastStep(WalkMethod):
    """Back-propagation through the last step alone."""

    name = "last_step"
    summary = "back-propagation through the last step"
    needs_gradient = "needed"
    bias = "earlier steps are dropped"

    @staticmethod
    def plan(setting):
        plan = Plan.everywhere(setting.T, setting.batch, 1.0)
        plan.weight[2:] = 0.0
        return plan


class Green(Reward):
    name = "green"

    def score(self, images, prompts):
        return images[:, 1].mean((1, 2))


@pytest.fixture
def module(monkeypatch):
    """What would be the new file."""
    file = types.ModuleType("rlr_of_tomorrow")
    file.LastStep, file.Green, file.TinyFlow = LastStep, Green, TinyFlow
    monkeypatch.setitem(sys.modules, file.__name__, file)
    return file.__name__


def test_a_method_is_one_file_and_one_line(module, monkeypatch, tmp_path, rlr):
    monkeypatch.setitem(METHODS, "last_step", f"{module}:LastStep")
    config = config_from_dict(small_config(tmp_path / "run", steps=2, method={"name": "last_step"}))
    first, last = train(TinyFlow(), redness, config).metrics[-2:]
    assert first["evaluations/backward"] * 2 == last["evaluations/backward"] == 2 * 8 * 2  # guidance is two
    assert "last_step" in rlr("list", "methods")[1]


def test_a_reward_is_one_file_and_one_line(module, monkeypatch, tiny_sd_folder, here, rlr):
    monkeypatch.setitem(REWARDS, "green", Entry(f"{module}:Green", "more green"))
    code, *_ = rlr(*train_arguments(tiny_sd_folder), "--reward", "green", "--steps", 1, "--out", "run")
    assert code == 0
    assert "more green" in rlr("list", "rewards")[1]


def test_a_family_is_one_file_and_one_line(module, monkeypatch, here, rlr):
    monkeypatch.setitem(FAMILIES, "tiny-flow", f"{module}:TinyFlow")
    path = write_tiny_flow(here / "model.tinyflow")
    code, *_ = rlr(*train_arguments(path), "--steps", 1, "--out", "run")
    assert code == 0
    code, out, _ = rlr(
        "sample", "--model", path, "--prompt", "a cat", "--lora", "run/lora.safetensors", "sampler.steps=3"
    )
    assert code == 0 and out.startswith("1 picture")
