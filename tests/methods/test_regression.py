"""Methods that learn from finished pictures: each is the gradient of its published loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lessons import Workbench
from marks import quick
from tiny_models import TINY

from rlr_core.diffusion import losses
from rlr_core.errors import UserError

ONE_LEVEL = {"noise_levels": 1, "inner_steps": 1, "least_noise": 0.2, "most_noise": 0.6}
"""One evaluation an update, away from pure noise, where weights are cut off."""


class Recorder:
    """Keeps what a chain is asked with a graph, so that a loss can be written on it."""

    def __init__(self, chain):
        self.calls = []
        self.predict = chain.predict
        chain.predict = self

    def __call__(self, x, share, conditioning, guided=False):
        if torch.is_grad_enabled():
            self.calls.append((x, share, conditioning, guided))
        return self.predict(x, share, conditioning, guided)


class Published:
    """What a published loss is written in: one noised batch, its target, and the three policies."""

    def __init__(self, bench: Workbench, recorder: Recorder, call, method, x0):
        self.x, self.share, self.conditioning, self.guided = call
        self.level = bench.chain.noise_level(self.share)
        noise = (self.x - self.level.alpha * x0) / self.level.sigma
        flow = bench.model.prediction == "flow"
        self.x0, self.target = x0, noise - x0 if flow else noise
        self.predict = recorder.predict
        self.v = self.ask()
        with torch.no_grad():
            with bench.adapter.disabled():
                self.base = self.ask()
            with method.snapshot.installed():
                self.old = self.ask()
        self.flow = flow

    def ask(self):
        return self.predict(self.x, self.share, self.conditioning, self.guided)

    def picture(self, v):
        if self.flow:
            return self.x - self.level.sigma * v
        return (self.x - self.level.sigma * v) / self.level.alpha

    def distance(self, a, b):
        """Mean square distance of two outputs, told as velocities: v = eps / alpha - ... of x_t."""
        slope = 1 if self.flow else 1 / self.level.alpha
        return (slope * (a - b)).square().mean((1, 2, 3))

    def error(self, v):
        return self.distance(v, self.target)


def standardized(rewards, groups):
    values = torch.stack([r - rewards[(groups == g) & (torch.arange(len(rewards)) != i)].mean()
                          for i, (r, g) in enumerate(zip(rewards, groups, strict=True))])  # fmt: skip
    return (values / values.square().mean().sqrt()).float()


def nft_loss(p: Published, rewards, groups, beta):
    r = (0.5 + standardized(rewards, groups) / 10).clamp(0, 1)
    plus, minus = (1 - beta) * p.old + beta * p.v, (1 + beta) * p.old - beta * p.v
    loss = 0
    for share, v in ((r, plus), (1 - r, minus)):
        error = p.picture(v) - p.x0
        loss = loss + share * error.square().mean((1, 2, 3)) / error.abs().mean((1, 2, 3)).detach()
    return (loss / beta).mean()


def awm_loss(p: Published, rewards, groups, clip):
    advantage = standardized(rewards, groups)
    rho = (p.error(p.old) - p.error(p.v)).exp()
    return -torch.minimum(rho * advantage, rho.clamp(1 - clip, 1 + clip) * advantage).mean()


def dpo_loss(p: Published, beta):
    gain = p.error(p.v) - p.error(p.base)
    return -F.logsigmoid(-beta / 2 * (gain[0::2] - gain[1::2])).mean()


def check(bench, method, samples, loss, rows=None):
    """The method's gradient is minus autograd's of `loss`, which is given a Published."""
    recorder = Recorder(bench.chain)
    (estimate,) = method.gradients(samples)
    (call,) = recorder.calls
    x0 = samples.latents if rows is None else samples.latents[rows]
    truth = torch.autograd.grad(
        loss(Published(bench, recorder, call, method, x0)), bench.adapter.parameters()
    )
    size = torch.stack([g.norm() for g in truth]).norm()
    assert size > 0
    for found, expected in zip(estimate.gradient, truth, strict=True):
        assert torch.allclose(found, -expected, atol=2e-4 * float(size)), (
            found + expected
        ).abs().max() / size


def moved(bench, method, prompts=(0, 0, 0, 0)):
    """Samples of the present policy, which then moves away from its snapshot."""
    samples = method.collect(bench.batch(list(prompts)), 0)
    bench.shake(0.05, seed=11)
    return samples, samples.rewards[0], samples.batch.groups


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_nft_is_the_gradient_of_its_loss(tiny_model, beta):
    bench = Workbench(tiny_model)
    method = bench.method("nft", nft_beta=beta, **ONE_LEVEL)
    samples, rewards, groups = moved(bench, method)
    check(bench, method, samples, lambda p: nft_loss(p, rewards, groups, beta))


@pytest.mark.parametrize("clip", [0.2, 1e-3])
def test_awm_is_the_gradient_of_its_loss(tiny_model, clip):
    bench = Workbench(tiny_model)
    method = bench.method("awm", clip_range=clip, **ONE_LEVEL)
    samples, rewards, groups = moved(bench, method)
    check(bench, method, samples, lambda p: awm_loss(p, rewards, groups, clip))


def test_dpo_is_the_gradient_of_its_loss(tiny_model):
    bench = Workbench(tiny_model)
    method = bench.method("dpo", dpo_beta=5.0, **ONE_LEVEL)
    samples, rewards, _ = moved(bench, method)
    rows = [int(rewards.argmax()), int(rewards.argmin())]
    check(bench, method, samples, lambda p: dpo_loss(p, 5.0), rows)


def test_reward_weighted_is_the_gradient_of_its_loss(tiny_model):
    bench = Workbench(tiny_model)
    method = bench.method("reward_weighted", temperature=0.5, **ONE_LEVEL)
    samples, rewards, groups = moved(bench, method)
    weights = torch.softmax(standardized(rewards, groups) / 0.5, 0)
    check(bench, method, samples, lambda p: (weights * p.error(p.v)).sum())


@pytest.mark.parametrize("guided", [False, True])
def test_graft_is_the_gradient_of_the_denoising_loss_on_the_accepted(tiny_model, guided):
    bench = Workbench(tiny_model)
    options = {"train_guided": guided, "accept": "top_k", "accept_count": 3, "buffer": 0}
    method = bench.method("graft", **options, **ONE_LEVEL)
    samples, rewards, _ = moved(bench, method)
    rows = sorted(rewards.argsort(descending=True)[:3].tolist())
    check(bench, method, samples, lambda p: p.error(p.v).mean(), rows)


def test_pulls_to_the_base_are_the_gradients_of_their_losses(tiny_model):
    bench = Workbench(tiny_model)
    method = bench.method("awm", clip_range=1.0, kl_weight=0.7, norm_guard=0.3, **ONE_LEVEL)
    samples, rewards, groups = moved(bench, method)

    def loss(p):
        ratio = p.v.flatten(1).norm(dim=1) / p.base.flatten(1).norm(dim=1)
        guard = F.relu(ratio - 1.05).square().mean()
        pull = p.distance(p.v, p.base).mean()
        return awm_loss(p, rewards, groups, 1.0) + 0.7 * pull + 0.3 * guard

    check(bench, method, samples, loss)


def test_norm_guard_acts_only_beyond_its_margin():
    from rlr_core.methods.regression import norm_hinge_gradient

    base = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    output = base * torch.tensor([0.5, 1.04, 1.3]).view(3, 1, 1, 1)
    found = norm_hinge_gradient(output, base)
    assert not found[:2].any()
    leaf = output.clone().requires_grad_()
    ratio = leaf.flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)
    (truth,) = torch.autograd.grad(F.relu(ratio - 1.05).square().sum(), leaf)
    assert torch.allclose(found, truth, atol=1e-6)


def test_nft_is_advantage_weighted_regression_where_nothing_has_moved(tiny_model):
    """To first order: at theta = theta_old its gradient is that of (A / 5) |x_0(v) - x_0|^2 / m."""
    bench = Workbench(tiny_model)
    method = bench.method("nft", **ONE_LEVEL)
    samples = method.collect(bench.batch([0, 0, 1, 1]), 0)
    advantage = standardized(samples.rewards[0], samples.batch.groups)
    recorder = Recorder(bench.chain)
    (estimate,) = method.gradients(samples)
    loss = 0
    for row, call in enumerate(recorder.calls):  # one block of two rows for each prompt
        rows = slice(2 * row, 2 * row + 2)
        p = Published(bench, recorder, call, method, samples.latents[rows])
        error = p.picture(p.v) - p.x0
        share = error.square().mean((1, 2, 3)) / error.abs().mean((1, 2, 3)).detach()
        loss = loss + (advantage[rows] / 5 * share).sum() / 4
    truth = torch.autograd.grad(loss, bench.adapter.parameters())
    for found, expected in zip(estimate.gradient, truth, strict=True):
        assert torch.allclose(found, -expected, atol=1e-5 + 1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("tiny_model", quick(TINY, "tiny-flow"), indirect=True)
@pytest.mark.parametrize("name", ["nft", "awm", "dpo", "graft", "p_graft", "reward_weighted", "d3po"])
def test_micro_batches_do_not_change_the_gradient(name, tiny_model):
    found = []
    bench = Workbench(tiny_model, eta=1.0)
    for micro_batch in (1, 3, 8):
        bench.problem.micro_batch = micro_batch
        method = bench.method(name)
        samples = method.collect(bench.batch([0, 0, 0, 1, 1, 1, 2, 2]), 3)
        found.append(next(iter(method.gradients(samples))).gradient)
    size = torch.stack([g.norm() for g in found[0]]).norm()
    assert size > 0
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-4 * float(size))


def test_further_optimizer_steps_draw_other_noise(tiny_model):
    bench = Workbench(tiny_model)
    method = bench.method("awm", inner_steps=2)
    first, second = method.gradients(method.collect(bench.batch([0, 0, 1, 1]), 0))
    assert not torch.allclose(first.gradient[1], second.gradient[1])


@pytest.mark.parametrize("name", ["nft", "awm"])
def test_snapshot_costs_nothing_while_it_is_the_model(name, tiny_model):
    bench = Workbench(tiny_model, guidance=1.0)
    method = bench.method(name, noise_levels=3, inner_steps=2)
    samples = method.collect(bench.batch([0, 0, 1, 1]), 0)
    before = bench.chain.evaluations.forward
    steps = method.gradients(samples)
    next(steps)
    assert bench.chain.evaluations.forward == before
    assert bench.chain.evaluations.backward == 4 * 3
    bench.shake(0.01)
    next(steps)
    assert bench.chain.evaluations.forward == before + 4 * 3


def test_snapshot_samples_and_follows_slowly(tiny_model):
    bench = Workbench(tiny_model)
    method = bench.method("nft", snapshot_decay=0.5)
    method.snapshot.updates = 500
    method.collect(bench.batch([0, 0]), 0)
    bench.shake(0.3, seed=3)
    before = [value.clone() for value in method.snapshot.values]
    moved_to = [parameter.detach().clone() for parameter in bench.adapter.parameters()]
    samples = method.collect(bench.batch([0, 0]), 1)
    for value, was, now in zip(method.snapshot.values, before, moved_to, strict=True):
        assert torch.allclose(value, (was + now) / 2, atol=1e-6)
    assert all(map(torch.equal, bench.adapter.parameters(), moved_to))
    with method.snapshot.installed():
        by_snapshot = method._roll_out(bench.batch([0, 0]), torch.arange(2))[1]
    assert torch.equal(samples.latents, by_snapshot)


def test_one_picture_a_prompt_is_refused_where_pictures_of_a_prompt_are_compared(sd):
    bench = Workbench(sd)
    for name in ("dpo", "graft", "p_graft"):
        with pytest.raises(UserError, match="samples_per_prompt"):
            bench.method(name).collect(bench.batch([0, 1, 2]), 0)
    with pytest.raises(UserError, match="samples_per_prompt"):
        Workbench.method(bench, "graft").collect(bench.batch([0]), 0)


# --- the forward process ---


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow", "sample"])
@pytest.mark.parametrize("angle", [0.3, 0.9, 1.4])
def test_target_makes_the_picture_that_was_noised(prediction, angle):
    rng = torch.Generator().manual_seed(0)
    x0, z = torch.randn(2, 5, 3, generator=rng)
    alpha, sigma = (
        (1 - angle / 1.5, angle / 1.5) if prediction == "flow" else (math.cos(angle), math.sin(angle))
    )
    level = losses.NoiseLevel(0.0, alpha, sigma)
    noised = losses.add_noise(x0, losses.CLEAN, level, z)
    assert torch.allclose(noised.latents, alpha * x0 + sigma * z)
    assert noised.weight == pytest.approx(1)
    output = losses.target(prediction, noised, level)
    x = noised.latents
    found = {
        "epsilon": lambda: (x - sigma * output) / alpha,
        "v_prediction": lambda: alpha * x - sigma * output,
        "flow": lambda: x - sigma * output,
        "sample": lambda: output,
    }[prediction]()
    assert torch.allclose(found, x0, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_slopes_tell_every_output_as_the_same_velocity(prediction):
    alpha, sigma = 0.6, 0.8
    level = losses.NoiseLevel(0.0, alpha, sigma)
    x, v = 0.3, 0.7
    pictures = [alpha * x - sigma * (v + d) for d in (0.0, 0.01)]
    outputs = {
        "epsilon": [(x - alpha * x0) / sigma for x0 in pictures],
        "v_prediction": [v, v + 0.01],
        "sample": pictures,
    }[prediction]
    slopes = losses.slopes(prediction, level)
    assert abs(outputs[1] - outputs[0]) * slopes.velocity == pytest.approx(0.01)
    assert abs(pictures[1] - pictures[0]) == pytest.approx(0.01 * slopes.x0)


def test_slopes_of_a_flow_model_are_its_own():
    assert losses.slopes("flow", losses.NoiseLevel(0.0, 0.3, 0.7)) == (1.0, pytest.approx(0.7))


def test_slope_is_cut_off_near_pure_noise():
    assert losses.slopes("epsilon", losses.NoiseLevel(0.0, 1e-3, 1.0)).velocity == losses.LARGEST_SLOPE


@pytest.mark.parametrize("start, levels", [(0.3, (0.35, 0.6, 0.97)), (0.7, (0.75, 0.95))])
@pytest.mark.parametrize("flow", [True, False])
def test_target_from_a_state_gives_the_score_of_a_gaussian_mixture(start, levels, flow):
    """E[noise* | x_t] = -sigma_t score(x_t): the residual is orthogonal to every function of x_t."""
    rng = torch.Generator().manual_seed(1)
    count = 400_000
    centres, spread = torch.tensor([-1.5, 0.5, 2.0], dtype=torch.float64), 0.4
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def level(share):
        alpha, sigma = (1 - share, share) if flow else (math.cos(share * 1.5), math.sin(share * 1.5))
        return losses.NoiseLevel(share, alpha, sigma)

    s = level(start)
    which = torch.multinomial(weights, count, replacement=True, generator=rng)
    x0 = centres[which] + spread * torch.randn(count, generator=rng, dtype=torch.float64)
    states = s.alpha * x0 + s.sigma * torch.randn(count, generator=rng, dtype=torch.float64)
    for share in levels:
        t = level(share)
        noised = losses.add_noise(states, s, t, torch.randn(count, generator=rng, dtype=torch.float64))
        x = noised.latents
        variance = (t.alpha * spread) ** 2 + t.sigma**2
        parts = weights.log() - (x[:, None] - t.alpha * centres) ** 2 / (2 * variance)
        score = (parts.softmax(1) * (t.alpha * centres - x[:, None]) / variance).sum(1)
        residual = (noised.noise + t.sigma * score) * noised.weight
        for feature in (torch.ones_like(x), x, x.square(), torch.sin(2 * x), (x > 0).double()):
            product = residual * feature
            assert abs(float(product.mean() / (product.std() / count**0.5))) < 4
        # noising again as if the state were a finished picture is seen to miss it
        wrong = losses.add_noise(
            states, losses.CLEAN, t, torch.randn(count, generator=rng, dtype=torch.float64)
        )
        off = (wrong.noise + t.sigma * score) * score
        assert abs(float(off.mean() / (off.std() / count**0.5))) > 10


def test_level_that_is_not_noisier_is_refused():
    level = losses.NoiseLevel(0, 0.5, 0.5)
    with pytest.raises(ValueError, match="noisier"):
        losses.add_noise(torch.zeros(1), level, level, torch.zeros(1))


def test_shares_of_the_sampler_have_its_timesteps(tiny_model):
    bench = Workbench(tiny_model, steps=7)
    for t in range(1, 8):
        found = bench.chain.noise_level(bench.chain.share(t)).timestep
        assert found == pytest.approx(bench.chain.step(t).timestep, abs=1e-6)


def test_noise_levels_are_spread_over_their_law(tiny_model):
    import numpy as np

    bench = Workbench(tiny_model, steps=5)
    uniform = sorted(
        bench.method("nft", least_noise=0.2, most_noise=0.7)._shares(50, np.random.default_rng(0))
    )
    assert all(0.2 + 0.01 * i <= share <= 0.2 + 0.01 * (i + 1) for i, share in enumerate(uniform))
    of_sampler = bench.method("nft", noise_law="sampler")._shares(10, np.random.default_rng(0))
    steps = [bench.chain.share(t) for t in range(1, 6)]
    assert sorted(of_sampler) == sorted(2 * steps)
