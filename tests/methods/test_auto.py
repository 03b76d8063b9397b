"""The default finds out which of a reward's two signals to follow, and leaves no other trace of its trial."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lessons import Workbench
from marks import quick
from tiny_models import TINY

from rlr_core.gradients.samples import Scores
from rlr_core.methods.auto import TRIAL, TRIAL_UPDATES

PROMPTS = [0, 0, 0, 0, 1, 1, 1, 1]
pytestmark = pytest.mark.parametrize("tiny_model", quick(TINY, "tiny-flow"), indirect=True)


def reward(latents):
    return -(latents - 0.5).flatten(1).square().mean(1)


def scores(sign: float):
    """A smooth reward whose gradient is its own (1), or says the opposite of the truth (-1)."""

    def score(latents, prompts, gradient):
        with torch.enable_grad():
            leaf = latents.detach().requires_grad_()
            (of_latents,) = torch.autograd.grad(reward(leaf).sum(), leaf)
        return Scores(reward(latents), sign * of_latents if gradient else None)

    return score


def make(tiny_model, sign: float = 1.0, black_box: bool = False):
    bench = Workbench(tiny_model, eta=1.0)
    bench.problem.score = scores(sign)
    bench.problem.pathwise = bench.problem.differentiable = not black_box
    bench.problem.learning_rate = 0.02
    return bench


class Drawing:
    """Batches, and which were asked for."""

    def __init__(self, bench: Workbench):
        self.bench, self.asked = bench, []

    def __call__(self, step, per_prompt=None):
        self.asked.append((step, per_prompt))
        return self.bench.batch(PROMPTS, seed=step % 1000 + 1)


@pytest.mark.parametrize(("sign", "follows"), [(1.0, "adaptive"), (-1.0, "p_graft")])
def test_signal_that_moves_the_reward_is_followed(tiny_model, sign, follows):
    bench = make(tiny_model, sign)
    method = bench.method("auto")
    start = [parameter.detach().clone() for parameter in bench.problem.parameters]
    method.prepare(Drawing(bench))
    assert method.followed.name == follows
    assert bool(method.chain.base_steps) == (follows == "p_graft")  # its LoRA leaves the last steps alone
    stayed = all(map(torch.equal, start, bench.problem.parameters))
    assert stayed == (follows == "p_graft")  # the run goes on from a trial that was good
    alone = bench.method(follows)
    alone.load_state_dict(method.followed.state_dict())
    samples = method.collect(bench.batch(PROMPTS), 0)
    found = next(iter(method.gradients(samples))).gradient
    expected = next(iter(alone.gradients(alone.collect(bench.batch(PROMPTS), 0)))).gradient
    assert all(map(torch.equal, found, expected))


def test_without_a_gradient_nothing_is_tried(tiny_model):
    bench = make(tiny_model, black_box=True)
    draw, method = Drawing(bench), bench.method("auto")
    method.prepare(draw)
    assert all(step < TRIAL for step, _ in draw.asked) and method.followed.name == "p_graft"
    assert method.per_prompt is None


def test_trial_is_made_once_on_batches_of_its_own(tiny_model):
    bench = make(tiny_model)
    draw, method = Drawing(bench), bench.method("auto")
    method.prepare(draw)
    steps = [step for step, _ in draw.asked if step >= TRIAL]
    assert steps == [*range(TRIAL, TRIAL + TRIAL_UPDATES)]
    again = bench.method("auto")
    again.load_state_dict(method.state_dict())
    again.prepare(draw)
    assert [
        step for step, _ in draw.asked if step >= TRIAL
    ] == steps and again.followed.name == method.followed.name


@pytest.mark.slow
def test_interrupted_trial_leaves_the_weights_as_they_were(tiny_model):
    bench = make(tiny_model)
    method = bench.method("auto")
    start = [parameter.detach().clone() for parameter in bench.problem.parameters]
    draw = Drawing(bench)

    def until(step, per_prompt=None):
        if step == TRIAL + TRIAL_UPDATES - 1:
            raise KeyboardInterrupt
        return draw(step, per_prompt)

    assert method.chain.base_steps  # without a trial, as where a person rates, pictures are compared
    with pytest.raises(KeyboardInterrupt):
        method.prepare(until)
    assert method.chain.base_steps
    assert all(map(torch.equal, start, bench.problem.parameters)) and not method.tried
    method.prepare(draw)
    again = [parameter.detach().clone() for parameter in bench.problem.parameters]
    method._install(start)
    fresh = bench.method("auto")
    fresh.prepare(draw)
    assert all(map(torch.equal, again, bench.problem.parameters))


@pytest.mark.parametrize(("sign", "per_prompt"), [(1.0, 1), (-1.0, None)])
def test_the_gradient_takes_each_prompt_once_and_comparisons_take_groups(tiny_model, sign, per_prompt):
    bench = make(tiny_model, sign)
    draw, method = Drawing(bench), bench.method("auto")
    method.prepare(draw)
    assert {asked for step, asked in draw.asked if step >= TRIAL} == {1}
    assert method.per_prompt == per_prompt


@pytest.mark.parametrize(("prompts", "group"), [(8, 4), (6, 3), (2, 2), (5, 5)])
def test_where_the_settings_say_one_picture_of_a_prompt_several_are_compared(tiny_model, prompts, group):
    bench = make(tiny_model, black_box=True)
    method = bench.method("auto")
    method.prepare(lambda step, per_prompt=None: SimpleNamespace(groups=torch.arange(prompts)))
    assert method.per_prompt == group
