"""Before the first step: what a run needs, and what is said when it does not fit."""

from __future__ import annotations

import math

import pytest
import torch

from rlr_core.config import EvaluationConfig, LoraConfig, SamplerConfig, TrainConfig
from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError
from rlr_core.training.preflight import GIB, MARGIN, Need, check_memory, measure
from rlr_core.training.setup import Parts, build
from rlr_core.training.trainer import train


@pytest.fixture
def make(tiny_sd_folder, tmp_path):
    def make(name: str = "run", **settings) -> Parts:
        sampler = settings.pop("sampler", {})
        config = TrainConfig(
            model=str(tiny_sd_folder), reward="brightness", prompts=["a cat", "a dog"], steps=2, batch=4,
            samples_per_prompt=2, out=str(tmp_path / name), keep_samples=2,
            sampler=SamplerConfig(steps=3, guidance=2.0, **sampler),
            evaluation=EvaluationConfig(samples=2), **settings,
        )  # fmt: skip
        return build(load_model(tiny_sd_folder, device="cpu"), "brightness", config)

    return make


def test_larger_pictures_and_no_checkpointing_need_more(make):
    plain = measure(make("a"))
    large = measure(make("b", sampler={"height": 32, "width": 32}))
    saving = measure(make("c", gradient_checkpointing=True))
    assert 3 < large.step / plain.step < 6 and 3 < large.picture / plain.picture < 6
    assert saving.step < plain.step


def test_an_adapted_text_encoder_is_part_of_the_need(make):
    plain, both = measure(make("a")), measure(make("b", lora=LoraConfig(text_encoder=True)))
    assert both.step > plain.step and both.picture == plain.picture


def test_a_run_that_does_not_fit_is_refused_with_settings_that_would(make):
    parts = make(micro_batch=4)
    need = measure(parts)
    free = int(need.total(2, 1) * 1.01)
    with pytest.raises(UserError, match=r"needs about .* GiB are free.*would fit: micro_batch 2; the result"):
        check_memory(parts, free)
    parts.config.micro_batch = 2
    assert check_memory(parts, free) == need


def test_a_family_that_can_make_room_is_asked_for_what_is_missing_before_a_run_is_refused(make, monkeypatch):
    parts = make(micro_batch=4)
    need = measure(parts)
    needed, asked = need.total(4, 1), []

    def make_room(missing: int) -> int:
        asked.append(missing)
        return missing

    monkeypatch.setattr(parts.model, "make_room", make_room)
    assert check_memory(parts, int(needed) - 1000) == need
    assert len(asked) == 1 and 1000 <= asked[0] <= 1002


def test_where_measuring_runs_out_of_memory_room_is_made_once_and_it_is_tried_again(make, monkeypatch):
    parts, found, tries = make(), [], []
    need = measure(parts)

    def measure_once_more(parts: Parts) -> Need:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("no")
        return need

    monkeypatch.setattr("rlr_core.training.preflight.measure", measure_once_more)
    monkeypatch.setattr(parts.model, "make_room", lambda missing: found.append(missing) or missing)
    assert check_memory(parts, 10 * GIB) == need and found == [10 * GIB]
    tries.clear()
    monkeypatch.setattr(parts.model, "make_room", lambda missing: 0)
    with pytest.raises(UserError, match="Not even one picture"):
        check_memory(parts, 10 * GIB)


def test_where_one_picture_is_too_much_checkpointing_comes_first_and_size_last(make):
    with pytest.raises(UserError, match="gradient_checkpointing on"):
        check_memory(make("a"), 1000)
    with pytest.raises(UserError, match=r"pictures of \d+ x \d+ would fit"):
        check_memory(make("b", gradient_checkpointing=True), 1000)


@pytest.mark.slow
def test_measuring_changes_nothing_in_the_run(make, monkeypatch):
    first, second = make("a"), make("b")
    measure(second)
    assert second.chain.evaluations == first.chain.evaluations
    for parts in (first, second):
        parts.adapter.detach()
    left = train(first.model, "brightness", first.config)
    monkeypatch.setattr("rlr_core.training.trainer.check_memory", lambda p: (measure(p), check_memory(p)))
    right = train(second.model, "brightness", second.config)
    means = [[row.get("reward/mean") for row in run.metrics] for run in (left, right)]
    assert means[0] == means[1]
    assert left.metrics[-1]["evaluations/forward"] == right.metrics[-1]["evaluations/forward"]


def test_what_memory_is_left_keeps_the_graphs_of_the_last_steps(make, monkeypatch):
    parts = make(micro_batch=2)
    needed = measure(parts).total(2, 1)
    batch_of_graphs = MARGIN * 4 * measure(parts).step
    for spare, steps in ((0.5, 0), (1.5, 1), (2.5, 2)):
        check_memory(parts, math.ceil(needed + spare * batch_of_graphs))
        assert parts.method.problem.graph_steps == steps
    monkeypatch.setattr("rlr_core.training.preflight.spare_memory", lambda: 0)
    check_memory(parts)
    assert parts.method.problem.graph_steps == 0


def test_without_a_gpu_nothing_is_asked(make):
    assert check_memory(make()) is None
    assert Need(GIB, 2 * GIB).total(1, 1) > 2 * GIB
