"""What acceptance and preferences do to a law, where the law can be written down."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lessons import Workbench
from marks import quick
from tiny_models import TINY

from rlr_core.config import MethodConfig
from rlr_core.diffusion.losses import Slopes
from rlr_core.errors import UserError
from rlr_core.methods import method_class
from rlr_core.methods.dpo import best_and_worst
from rlr_core.methods.graft import accepted
from rlr_core.methods.regression import Seen

LAW = torch.tensor([0.1, 0.3, 0.05, 0.25, 0.3], dtype=torch.float64)
REWARD = torch.tensor([2.0, -1.0, 3.0, 0.5, 0.0], dtype=torch.float64)
"""A chain with five outcomes, their probabilities and rewards."""


def at_least(reward: float) -> float:
    return float(LAW[reward <= REWARD].sum())


def binomial_capped(n: int, p: float, cap: int) -> float:
    """E[min(cap, K)] of a binomial K."""
    return sum(min(cap, k) * math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1))


@pytest.mark.parametrize(
    "options", [{"accept": "best_of_n"}, {"accept": "top_k", "accept_count": 2}, {"accept": "threshold"}]
)
def test_accepted_follow_the_tilted_law(options):
    """Of N samples: K best ones of each outcome or better, less those that are strictly better."""
    N, prompts = 4, 20_000
    rng = torch.Generator().manual_seed(0)
    outcome = torch.multinomial(LAW, N * prompts, replacement=True, generator=rng)
    groups = torch.arange(prompts).repeat_interleave(N)
    config = MethodConfig("graft", accept_threshold=0.5, **options)
    parts = [
        accepted(REWARD[outcome[part]], groups[part], config) for part in torch.arange(N * prompts).split(400)
    ]
    taken = outcome[torch.cat(parts)]
    found = torch.bincount(taken, minlength=5) / len(taken)
    if options["accept"] == "threshold":
        truth = LAW * (REWARD >= 0.5)
    else:
        K = options.get("accept_count", 1)
        truth = torch.tensor(
            [
                binomial_capped(N, at_least(r), K) - binomial_capped(N, at_least(r) - p, K)
                for p, r in zip(LAW.tolist(), REWARD.tolist(), strict=True)
            ]
        )
        if K == 1:  # the paper's tilt: the law times a rising function of the reward alone
            tilt = truth / LAW
            assert (tilt[REWARD.argsort()].diff() > 0).all()
    truth = truth / truth.sum()
    error = (truth * (1 - truth) / prompts).sqrt()
    assert float(((found - truth).abs() / error.clamp(min=1e-12))[truth > 0].max()) < 4
    assert not found[truth == 0].any()


@pytest.mark.slow
def test_fixed_point_of_dpo_is_the_rewards_tilt():
    """Preferences drawn as Bradley-Terry of r: at the fixed point, minus the loss less the base's loss is
    2 r / beta and a constant: the base's law times exp(r / beta), where -loss / 2 stands for log p."""
    beta, rewards = 4.0, torch.tensor([0.8, -0.3, 0.1])
    dpo = method_class("dpo").__new__(method_class("dpo"))  # no model: a table of outputs, one a picture
    dpo.options = MethodConfig("dpo", dpo_beta=beta)
    rng = torch.Generator().manual_seed(0)
    target, base = torch.randn(2, 3, 1, 2, 2, generator=rng)
    output = base.clone()
    orders = [(i, j) for i in range(3) for j in range(3) if i != j]
    rows = torch.tensor(orders).flatten()
    won = torch.tensor([torch.sigmoid(rewards[i] - rewards[j]) for i, j in orders]).repeat_interleave(2)
    values = torch.tensor([1.0, -1.0]).repeat(len(orders))
    for _ in range(20_000):
        seen = Seen(output[rows], target[rows], output[rows], base[rows], values, Slopes(1.0, 1.0))
        kappa, *_ = dpo.coefficients(seen)
        u = -(kappa * won)[:, None, None, None] * (output[rows] - target[rows])
        output = output.index_add(0, rows, u, alpha=0.05)
    gain = (output - target).square().mean((1, 2, 3)) - (base - target).square().mean((1, 2, 3))
    expected = -2 * rewards / beta
    assert torch.allclose(gain - gain.mean(), expected - expected.mean(), atol=1e-3)


def test_pairs_are_the_best_and_the_worst_of_each_prompt():
    rewards = torch.tensor([1.0, 5.0, 3.0, 2.0, 2.0, 0.0, 4.0])
    groups = torch.tensor([7, 7, 7, 3, 3, 9, 9])
    assert best_and_worst(rewards, groups).tolist() == [[1, 0], [6, 5]]


@pytest.mark.parametrize("tiny_model", quick(TINY, "tiny-flow"), indirect=True)
def test_d3po_is_the_gradient_of_its_loss(tiny_model):
    bench = Workbench(tiny_model, eta=1.0, micro_batch=3)
    method = bench.method("d3po", d3po_beta=0.02)
    samples = method.collect(bench.batch([0, 0, 0, 1, 1]), 0)
    pairs = best_and_worst(samples.rewards[0], samples.batch.groups).tolist()
    (estimate,) = method.gradients(samples)
    rows = {int(row): (part, place) for part in samples.parts for place, row in enumerate(part.index)}

    def log_ratio(row, t):
        part, place = rows[row]
        path, sigma = part.trajectory, bench.chain.sigma(t)
        conditioning = path.conditioning.select(torch.tensor([place]))
        before, after = path.latents[t][place : place + 1], path.latents[t - 1][place : place + 1]
        with torch.no_grad(), bench.adapter.disabled():
            base = bench.chain.mean(before, t, conditioning)
        mean = bench.chain.mean(before, t, conditioning)
        return ((after - base).square().sum() - (after - mean).square().sum()) / (2 * sigma**2)

    loss = 0
    for good, bad in pairs:
        for t in range(1, bench.chain.T + 1):
            if bench.chain.sigma(t) > 0:
                loss = loss - F.logsigmoid(0.02 * (log_ratio(good, t) - log_ratio(bad, t))) / len(pairs)
    truth = torch.autograd.grad(loss, bench.adapter.parameters())
    size = torch.stack([g.norm() for g in truth]).norm()
    for found, expected in zip(estimate.gradient, truth, strict=True):
        assert torch.allclose(found, -expected, atol=2e-4 * float(size))


@pytest.mark.parametrize("tiny_model", quick(TINY, "tiny-flow"), indirect=True)
@pytest.mark.parametrize("at, step", [(0.25, 2), (0.5, 3), (0.75, 5), (0.0, 1), (1.0, 5)])
def test_p_graft_trains_and_uses_the_adapter_above_its_state_only(tiny_model, at, step):
    bench = Workbench(tiny_model, steps=6)
    method = bench.method("p_graft", accept_at=at, sample_from="current", buffer=0)
    assert method.state_step == step
    batch, everyone = bench.batch([0, 0, 1, 1]), torch.arange(4)
    samples = method.collect(batch, 0)
    lesson = method.lesson(samples, 0)
    state = bench.chain.step(step)
    assert lesson.level.timestep == pytest.approx(state.timestep)
    assert method.range[0] > bench.chain.share(step)
    # the state is where the adapter's part of the chain ends, and the picture is the base model's from there
    x = batch.noise(everyone).initial()
    with torch.no_grad():
        for t in range(6, 0, -1):
            if t == step:
                assert torch.allclose(samples.latents, x, atol=1e-5)
            bench.chain.base_steps = 0
            if t <= step:
                with bench.adapter.disabled():
                    x = bench.chain.mean(x, t, batch.conditioning)
            else:
                x = bench.chain.mean(x, t, batch.conditioning)
    bench.chain.base_steps = step
    assert torch.allclose(method._roll_out(batch, everyone)[1], x, atol=1e-5)


def test_p_graft_refuses_a_range_below_its_state(sd):
    with pytest.raises(UserError, match="accept_at"):
        Workbench(sd).method("p_graft", accept_at=0.75, most_noise=0.3)


def test_graft_can_sample_from_the_base_model(tiny_model):
    bench = Workbench(tiny_model)
    samples = bench.method("graft", sample_from="base").collect(bench.batch([0, 0]), 0)
    with bench.adapter.disabled():
        truth = bench.method("graft", sample_from="current").collect(bench.batch([0, 0]), 0)
    assert torch.equal(samples.latents, truth.latents)


def test_buffer_gives_back_what_was_accepted_with_its_prompts(tiny_model):
    bench = Workbench(tiny_model)
    method = bench.method("graft", buffer=3)
    kept = []
    for step, prompts in enumerate([(0, 0, 1, 1), (2, 2, 0, 0)]):
        samples = method.collect(bench.batch(list(prompts), seed=step), step)
        lesson = method.lesson(samples, 0)
        best = accepted(samples.rewards[0], samples.batch.groups, method.options).nonzero().flatten()
        kept += [(samples.latents[row], int(samples.batch.groups[row])) for row in best]
    kept = kept[-3:]
    assert lesson.size == 3
    for row in range(3):
        (latents, prompt) = next((x, p) for x, p in kept if torch.equal(x, lesson.latents[row]))
        found = lesson.conditioning.select(torch.tensor([row])).at(0.5, 1.0, False)
        expected = bench.book.conditioning([prompt]).at(0.5, 1.0, False)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
