"""A size far from the model's own is warned about, with times; Cancel is heard inside one evaluation."""

from __future__ import annotations

import pytest
import torch

from rlr_core.common.listening import heard_inside
from rlr_core.config import EvaluationConfig, SamplerConfig, TrainConfig
from rlr_core.diffusion.models.loading import load_model
from rlr_core.training.size_warning import duration, warn_of_size
from rlr_core.training.trainer import train


def settings(tmp_path, side: int) -> TrainConfig:
    return TrainConfig(
        model="demo", reward="brightness", prompts=["a red circle"], steps=1, batch=2, samples_per_prompt=2,
        out=str(tmp_path / "run"), sampler=SamplerConfig(steps=2, width=side or None, height=side or None),
        evaluation=EvaluationConfig(samples=2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (32, ("1/4 of the area that this model was made for, 64 x 64",)),
        (128, ("Pictures of 128 x 128 have 4 times the area", "An update takes about", "the run about")),
    ],
)
def test_a_size_far_from_the_models_own_is_said_before_anything_else(tmp_path, side, words):
    events = []
    train(load_model("demo"), "brightness", settings(tmp_path, side), on_event=events.append)
    warnings = [event.data["message"] for event in events if event.kind == "warning"]
    assert all(word in warnings[0] for word in words), warnings
    kinds = [event.kind for event in events]
    assert kinds.index("warning") < kinds.index("start")


@pytest.mark.parametrize("side", [0, 64, 96])
def test_a_usual_size_is_not_warned_about(tmp_path, side):
    said = []
    train(
        load_model("demo"),
        "brightness",
        settings(tmp_path, side),
        on_event=lambda event: said.append(event.data["message"]) if event.kind == "warning" else None,
    )
    assert not [sentence for sentence in said if "area" in sentence]


def test_the_time_of_a_huge_picture_is_reckoned_and_not_tried(tmp_path):
    from rlr_core.training.setup import build

    parts = build(load_model("demo"), "brightness", settings(tmp_path, 16_384))
    sizes, said, clock = [], [], [0.0]

    def denoise(latents, *rest):
        sizes.append(latents.shape[-1])
        clock[0] += 0.001 * latents.shape[-1] ** 2
        return latents

    parts.model.denoise = denoise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlr_core.training.size_warning.time.monotonic", lambda: clock[0])
        warn_of_size(parts, said.append)
    widest = parts.model.latent_shape(16_384, 16_384, 1)[-1]
    assert max(sizes) <= widest / 16
    # an update: two pictures, sampled in two steps and learned from; the run: two evaluations of two more
    update = 0.001 * widest**2 * 2 * 2 * 3
    assert f"An update takes about {duration(update)}" in said[0]
    assert f"the run about {duration(update + 0.001 * widest**2 * 2 * 2 * 2)}" in said[0]


def test_durations_are_for_people():
    said = [duration(seconds) for seconds in (5, 119, 120, 7_300, 3_600 * 50)]
    assert said == ["5 seconds", "119 seconds", "2 minutes", "2 hours", "2 days"]


def test_a_check_is_asked_between_the_blocks_of_one_evaluation_and_on_the_way_back():
    model = load_model("demo")
    latents = torch.randn(1, *model.latent_shape(64, 64, 1), requires_grad=True)
    calls = []
    with heard_inside(model, lambda: calls.append(0)):
        output = model.denoise(latents, 500.0, model.blank_prompts(1))
        there = len(calls)
        output.sum().backward()
    assert there >= 4 and len(calls) > there
    calls.clear()
    model.denoise(latents, 500.0, model.blank_prompts(1))
    assert not calls, "a hook was left in the model"


class Stop(BaseException):
    pass


@pytest.mark.parametrize("most", [3, 12, 40])
def test_what_the_check_raises_ends_a_run_in_the_middle_of_an_evaluation(tmp_path, most):
    calls = []

    def check():
        calls.append(0)
        if len(calls) > most:
            raise Stop

    model = load_model("demo")
    with pytest.raises(Stop):
        train(model, "brightness", settings(tmp_path, 0), check=check)
    assert len(calls) == most + 1
    assert not [module for network in model.networks.values() for module in network.modules()
                if module._forward_hooks]  # fmt: skip
