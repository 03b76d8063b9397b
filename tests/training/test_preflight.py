"""Before the first step: what a run needs, and what is said when it does not fit."""

from __future__ import annotations

import math
from types import SimpleNamespace

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


@pytest.mark.slow
def test_an_adapted_text_encoder_is_part_of_the_need(make):
    plain, both = measure(make("a")), measure(make("b", lora=LoraConfig(text_encoder=True)))
    assert both.step > plain.step and both.picture == plain.picture


def test_a_run_that_does_not_fit_is_cut_into_smaller_pieces_and_says_so(make):
    parts, said = make(micro_batch=4, decode_batch=3), []
    need = measure(parts)
    free = int(max(need.total(2, 0), need.total(0, 1)) * 1.01)
    assert check_memory(parts, free, said.append) == need
    assert parts.config.micro_batch == parts.method.problem.micro_batch == int(free / (1.1 * need.step))
    assert parts.config.decode_batch == parts.scorer.decode_batch == 3
    assert need.total(parts.config.micro_batch, parts.config.decode_batch) <= free
    assert not parts.config.gradient_checkpointing and 1 <= parts.config.evaluation.batch < 8
    (sentence,) = said
    assert "micro_batch 2 instead of 4" in sentence and "result stays the same" in sentence
    assert check_memory(parts, free, said.append) == need and len(said) == 1


def test_a_run_that_fits_is_left_as_it_is(make):
    parts, said = make(micro_batch=4, decode_batch=3), []
    before = parts.config.to_dict()
    check_memory(parts, 10 * GIB, said.append)
    assert parts.config.to_dict() == before and not said


@pytest.mark.slow
def test_smaller_pieces_give_the_same_result(make, monkeypatch):
    left = make("a", micro_batch=4, decode_batch=4)
    need = measure(left)
    left.adapter.detach()
    free = int(max(need.total(1, 0), need.total(0, 1)) * 1.01)
    rewards = []
    for name, memory in (("b", None), ("c", free)):
        parts, events = make(name, micro_batch=4, decode_batch=4), []
        parts.adapter.detach()
        monkeypatch.setattr("rlr_core.training.preflight.free_bytes", lambda device, memory=memory: memory)
        result = train(parts.model, "brightness", parts.config, on_event=events.append)
        rewards.append([row["reward/mean"] for row in result.metrics if "reward/mean" in row])
        said = [event.data["message"] for event in events if event.kind == "warning"]
        assert any("To fit into" in message for message in said) == (memory is not None)
    assert len(rewards[0]) > 1 and rewards[0] == pytest.approx(rewards[1], rel=1e-4)


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
    assert check_memory(parts, 10 * GIB) == need and parts.config.gradient_checkpointing
    tries.clear()
    with pytest.raises(UserError, match="Not even one picture"):
        check_memory(parts, 10 * GIB)


def test_where_one_picture_is_too_much_checkpointing_comes_first_and_size_last(make):
    parts, said = make("a"), []
    plain, saving = measure(parts), measure(make("b", gradient_checkpointing=True))
    free = int((plain.total(1, 1) + saving.total(1, 1)) / 2)
    assert check_memory(parts, free, said.append) == saving
    assert parts.config.gradient_checkpointing and "gradient_checkpointing True instead of False" in said[0]
    with pytest.raises(UserError, match=r"needs about .* are free.* Pictures of \d+ x \d+ would fit"):
        check_memory(make("c"), 1000)


@pytest.mark.slow
def test_measuring_changes_nothing_in_the_run(make, monkeypatch):
    first, second = make("a"), make("b")
    measure(second)
    assert second.chain.evaluations == first.chain.evaluations
    for parts in (first, second):
        parts.adapter.detach()
    left = train(first.model, "brightness", first.config)
    monkeypatch.setattr(
        "rlr_core.training.trainer.check_memory", lambda parts, tell: (measure(parts), check_memory(parts))
    )
    right = train(second.model, "brightness", second.config)
    means = [[row.get("reward/mean") for row in run.metrics] for run in (left, right)]
    assert means[0] == means[1]
    assert left.metrics[-1]["evaluations/forward"] == right.metrics[-1]["evaluations/forward"]


def test_nobody_is_asked_about_the_blank_picture_that_is_measured(tiny_sd_folder, make, tmp_path):
    from rlr_core.rewards import load_reward

    asked = []
    person = load_reward("ratings", ask=lambda images, prompts: asked.append(len(prompts)) or [0.0])
    parts = build(load_model(tiny_sd_folder, device="cpu"), person, make().config)
    assert measure(parts).picture >= 0 and asked == []


def test_what_memory_is_left_keeps_the_graphs_of_the_last_steps(make, monkeypatch):
    parts = make(micro_batch=2)
    needed = measure(parts).total(2, 1)
    batch_of_graphs = MARGIN * 4 * measure(parts).step
    for spare, steps in ((3.5, 0), (4.5, 1), (8.5, 2)):  # a quarter of the computer's is used
        check_memory(parts, math.ceil(needed + spare * batch_of_graphs))
        assert parts.method.problem.graph_steps == steps


def test_the_computers_own_memory_is_counted_too(make, monkeypatch):
    need, room = measure(make("a")), SimpleNamespace(available=10 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: room)
    assert check_memory(make("b")) == need
    room.available = 1000
    with pytest.raises(UserError, match="are free"):
        check_memory(make("c"))


def test_a_device_that_does_not_say_what_is_free_is_not_asked(make, monkeypatch):
    monkeypatch.setattr("rlr_core.training.preflight.free_bytes", lambda device: None)
    assert check_memory(make()) is None
    assert Need(GIB, 2 * GIB).total(1, 1) > 2 * GIB
