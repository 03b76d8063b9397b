"""The trainer's promises: it learns, it never asks a black box for a gradient, it stops with a sentence."""

from __future__ import annotations

import math

import pytest
import torch
from marks import quick
from runs import redness, small_config, weights
from tiny_flow import TinyFlow
from tiny_models import load_tiny

from rlr_core.config import TrainConfig, config_from_dict
from rlr_core.errors import UserError
from rlr_core.evaluation.measures import difference
from rlr_core.evaluation.sampling import sample
from rlr_core.gradients.advantages import advantages
from rlr_core.rewards.base import Reward
from rlr_core.training.trainer import train


def train_on(reward, out, on_event=None, judge=None, **changes):
    config = config_from_dict(small_config(out, **changes))
    return train(TinyFlow(), reward, config, on_event=on_event, judge=judge)


LONGER = {"steps": 24, "batch": 16, "micro_batch": 16, "evaluation": {"samples": 32, "batch": 32}}


@pytest.mark.parametrize(
    "method",
    quick(
        ["adaptive", "full", "truncated", "likelihood_ratio", "ddpo", "rlr", "zeroth_order"], "zeroth_order"
    ),
)
def test_every_method_raises_the_reward(method, tmp_path):
    settings = {"name": method, "remainder": "likelihood_ratio", "perturbations": 4, "perturbation": 0.05}
    result = train_on(redness, tmp_path / "run", method=settings, **LONGER)
    gain = difference(result.before, result.after, "reward")
    assert gain.low > 0


@pytest.mark.slow
def test_black_box_reward_is_never_asked_for_a_gradient(tmp_path):
    def black_box(images, prompts):
        assert not images.requires_grad
        assert not torch.is_grad_enabled()
        return redness(images, prompts)

    black_box.differentiable = False
    settings = LONGER | {"sampler": {"last_step_noise": 0.1}}
    result = train_on(black_box, tmp_path / "run", method={"name": "adaptive", "budget": 1.0}, **settings)
    assert difference(result.before, result.after, "reward").low > 0


@pytest.mark.parametrize("method", ["full", "truncated"])
def test_method_that_needs_a_gradient_refuses_a_black_box(method, tmp_path):
    def black_box(images, prompts):
        return redness(images, prompts).detach()

    with pytest.raises(UserError, match="needs a differentiable reward"):
        train_on(black_box, tmp_path / "run", method={"name": method})


def trained_sd(folder, out, **changes):
    model = load_tiny("stable-diffusion", folder)
    config = config_from_dict(small_config(out, **changes))
    return model, train(model, redness, config)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adaptive", "ddpo", "rlr", "zeroth_order"])
def test_a_run_trains_the_text_encoder_if_asked(method, tiny_sd_folder, tmp_path):
    settings = {"steps": 2, "method": {"name": method}}
    _, plain = trained_sd(tiny_sd_folder, tmp_path / "plain", **settings)
    model, both = trained_sd(tiny_sd_folder, tmp_path / "both", **settings, lora={"text_encoder": True})
    ours, theirs = weights(tmp_path / "both"), weights(tmp_path / "plain")
    text = {name: tensor for name, tensor in ours.items() if name.startswith("lora_te_")}
    assert ours.keys() - theirs.keys() == text.keys() and len(text) == 3 * 2 * 4
    assert all(tensor.any() for tensor in text.values())  # the second matrices start at zero
    assert torch.equal(both.before.images, plain.before.images)  # the base model, either way
    assert not torch.equal(both.after.images, plain.after.images)
    assert both.metrics[-1]["kl"] > 0
    with both.lora.adapter.disabled():
        sampler = config_from_dict(small_config(tmp_path)).sampler
        images = sample(model, both.before.prompts, both.before.seeds, sampler)
    assert torch.equal(images[:2], both.before.images)


def test_a_run_on_an_unreadable_prompt_leaves_no_adapter_behind(tiny_sd_folder, tmp_path):
    model = load_tiny("stable-diffusion", tiny_sd_folder)
    for text_encoder in (True, False):
        settings = small_config(tmp_path / "run", prompts=[], lora={"text_encoder": text_encoder})
        with pytest.raises(UserError, match="prompts must be a list"):
            train(model, redness, config_from_dict(settings))


def test_a_family_without_a_text_encoder_says_so(tmp_path):
    with pytest.raises(UserError, match="has no text encoder that can be trained"):
        train_on(redness, tmp_path / "run", lora={"text_encoder": True})


def test_steps_out_of_a_black_boxs_reach_are_told(tmp_path):
    def black_box(images, prompts):
        return redness(images, prompts).detach()

    told = []
    train_on(black_box, tmp_path / "run", steps=1, on_event=told.append)
    warnings = [event.data["message"] for event in told if event.kind == "warning"]
    assert any("last 1 of 4" in message and "last_step_noise" in message for message in warnings)


def test_gradients_that_are_not_finite_are_skipped_counted_and_end_the_run(tmp_path):
    class Infinite(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    def infinite(images, prompts):
        return Infinite.apply(redness(images, prompts))

    told = []
    with pytest.raises(UserError, match="learning_rate"):
        train_on(infinite, tmp_path / "run", steps=20, method={"name": "full"}, on_event=told.append)
    skipped = [event for event in told if event.kind == "warning" and "skipped" in event.data["message"]]
    assert len(skipped) == 5
    assert (tmp_path / "run/state/state.safetensors").exists()


@pytest.mark.slow
def test_a_gradient_that_is_once_not_finite_costs_one_update(tmp_path):
    calls = []

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            calls.append(1)
            return gradient * (math.nan if len(calls) == 3 else 1.0)

    def once(images, prompts):
        return Once.apply(redness(images, prompts))

    once.differentiable = True
    result = train_on(once, tmp_path / "run", method={"name": "full"})
    assert result.metrics[-1]["updates/skipped"] == 1
    assert result.metrics[-1]["step"] == 6


@pytest.mark.parametrize(
    "reward, sentence",
    [
        (lambda images, prompts: redness(images, prompts).mean(), "one real number per picture"),
        (lambda images, prompts: redness(images, prompts)[:, None], "one real number per picture"),
        (lambda images, prompts: redness(images, prompts) * math.nan, "for picture 0"),
    ],
    ids=["scalar", "column", "nan"],
)
def test_reward_that_is_no_reward_is_an_error_that_says_why(reward, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        train_on(reward, tmp_path / "run")


def test_constant_reward_is_told(tmp_path):
    told = []
    train_on(lambda images, prompts: redness(images, prompts) * 0 + 2, tmp_path / "run", steps=1,
             on_event=told.append)  # fmt: skip
    assert any("every picture 2" in event.data.get("message", "") for event in told)


@pytest.mark.slow
def test_run_stops_when_the_judge_drops_and_keeps_the_best(tmp_path):
    """The judge wants the opposite of the reward, so the base is the best there is."""

    def opposite(images, prompts):
        return -redness(images, prompts).detach()

    settings = {"steps": 40, "evaluation": {"samples": 32, "batch": 32, "every": 2,
                                            "stop_when_judge_drops": True}}  # fmt: skip
    result = train_on(redness, tmp_path / "run", judge=opposite, **settings)
    assert result.reason == "the judge dropped"
    assert result.step < 40
    assert all(float(p.detach().abs().max()) == 0 for n, p in result.lora.adapter.named_parameters().items()
               if "lora_B" in n)  # fmt: skip


def test_metrics_have_what_every_reader_needs(tmp_path):
    result = train_on(redness, tmp_path / "run", evaluation={"samples": 4, "every": 4})
    assert result.metrics[0]["step"] == 0 and "judge/mean" in result.metrics[0]
    assert [row["step"] for row in result.metrics] == list(range(7))
    needed = {"reward/mean", "reward/std", "gradient/norm", "kl", "evaluations/forward",
              "evaluations/backward", "memory/peak_bytes", "time/seconds"}  # fmt: skip
    for row in result.metrics[1:]:
        assert needed <= row.keys()
    assert [row["step"] for row in result.metrics if "judge/mean" in row] == [0, 4, 6]
    counts = [row["evaluations/forward"] + row["evaluations/backward"] for row in result.metrics[1:]]
    assert counts == sorted(counts) and counts[0] > 0
    for name in ("config.yaml", "lora.safetensors", "reward.png", "before_after.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0


@pytest.mark.slow
def test_kl_holds_the_adapter_near_the_base(tmp_path):
    free = train_on(redness, tmp_path / "free", **LONGER)
    held = train_on(
        redness, tmp_path / "held", **(LONGER | {"method": {"name": "adaptive", "kl_weight": 1.0}})
    )
    assert held.metrics[-1]["kl"] < 0.5 * free.metrics[-1]["kl"]


# --- advantages ---

REWARDS = torch.tensor([[1.0, 2.0, 6.0, 10.0], [3.0, 4.0, 8.0, 20.0]], dtype=torch.float64)
GROUPS = torch.tensor([5, 5, 5, 9])


def test_leave_one_out_leaves_out_the_twin_as_well():
    values = advantages(REWARDS, GROUPS, "leave_one_out").values
    assert values[0, 0] == pytest.approx(1 - (2 + 4 + 6 + 8) / 4)
    assert values[1, 0] == pytest.approx(3 - (2 + 4 + 6 + 8) / 4)


def test_prompt_that_stands_alone_takes_the_batch_as_baseline():
    values = advantages(REWARDS, GROUPS, "leave_one_out").values
    assert values[0, 3] == pytest.approx(10 - (1 + 3 + 2 + 4 + 6 + 8) / 6)


def test_z_score_has_mean_zero_and_deviation_one_in_each_group():
    found = advantages(REWARDS, GROUPS, "z_score")
    group = found.values[:, :3]
    assert float(group.mean()) == pytest.approx(0, abs=1e-9)
    assert float(group.square().mean()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(found.scale[0, :3], found.scale[1, :3])


def test_running_mean_is_the_baseline_once_there_is_one():
    assert float(advantages(REWARDS, GROUPS, "running_mean", 3.0).values[0, 2]) == 3.0


def test_config_object_may_name_its_method_only():
    assert TrainConfig(method="rlr").method.name == "rlr"


@pytest.mark.slow
def test_what_a_reward_averages_changes_between_updates_and_survives_a_kill(tmp_path):
    """combine's running scales stand still inside an update, move after it, and go on from the state."""
    from rlr_core.rewards import load_reward

    def combined():
        return load_reward("combine", rewards=["brightness", "contrast"], weights=[1.0, 1.0])

    whole = combined()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    train_on(whole, tmp_path / "whole", steps=4)
    assert any(not torch.equal(before[name], value) for name, value in whole.state_dict().items())

    train_on(combined(), tmp_path / "parts", steps=2)
    resumed = combined()
    config = config_from_dict(small_config(tmp_path / "parts", steps=4))
    train(TinyFlow(), resumed, config, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_reward_that_wants_whole_batches_gets_them(tmp_path):
    seen = []

    class Person(Reward):
        name, differentiable, whole_batch = "person", False, True

        def score(self, images, prompts):
            seen.append(len(prompts))
            return redness(images, prompts)

    train_on(Person(), tmp_path / "run", steps=1, decode_batch=1, evaluation={"samples": 8, "batch": 8})
    assert set(seen) == {4, 8}  # micro-batches of training, batches of the evaluation
