"""The walk against autograd through the whole chain, on both families; its memory, its KL, its clip."""

from __future__ import annotations

import gc

import pytest
import torch
from adapters import attach
from marks import quick

from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.config.prompts import Prompt
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.gradients.backward import Regularization, Signals, backward
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.plan import Plan, draw_depths, survival
from rlr_core.gradients.samples import Batch, Scores
from rlr_core.gradients.zeroth_order import Perturbation
from rlr_core.methods import method_class

PROMPTS = ["a red circle", "a blue square", "a cat"]


def make(model, steps=4, eta=1.0, guidance=2.5):
    """A chain, its adapter with non-zero weights, and the conditioning of three prompts."""
    adapter = attach(model, rank=2, targets="attention", seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.2)
    chain = Chain(model, model.schedule(SamplerConfig(steps=steps, eta=eta)), guidance)
    book = PromptBook(model, [Prompt(text, (text,)) for text in PROMPTS])
    return chain, adapter, book.conditioning([0, 1, 2])


def noise_for(model, seeds=(3, 4, 5)):
    return Noise(seeds, model.latent_shape(*model.default_size))


def score(model, latents):
    """A smooth function of the pictures [B]."""
    images = model.decode(latents)
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2)) + 0.1 * images.square().mean((1, 2, 3))


def unrolled_gradient(chain, adapter, conditioning, noise):
    """d sum R / d theta by autograd through every step at once."""
    x = noise.initial()
    for t in range(chain.T, 0, -1):
        x = chain.mean(x, t, conditioning)
        if chain.sigma(t) > 0:
            x = x + chain.sigma(t) * noise.at(t)
    return torch.autograd.grad(score(chain.model, x).sum(), adapter.parameters())


def pathwise_start(model, x0):
    leaf = x0.clone().requires_grad_()
    return torch.autograd.grad(score(model, leaf).sum(), leaf)[0]


def relative(found, expected):
    difference = sum((a - b).square().sum() for a, b in zip(found, expected, strict=True))
    return float((difference / sum(b.square().sum() for b in expected)).sqrt())


def by_network(adapter, tensors):
    """A tensor per parameter, split into the denoiser's and the text encoder's."""
    names = adapter.named_parameters()
    parts = {"denoiser": [], "text encoder": []}
    for name, tensor in zip(names, tensors, strict=True):
        parts["text encoder" if name.startswith("text_encoder.") else "denoiser"].append(tensor)
    return {part: tensors for part, tensors in parts.items() if tensors}


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_walk_equals_autograd_through_the_unrolled_chain(tiny_model, eta):
    chain, adapter, conditioning = make(tiny_model, eta=eta)
    noise = noise_for(tiny_model)
    trajectory = rollout(chain, noise, conditioning)
    signals = Signals(torch.zeros(3), pathwise_start(tiny_model, trajectory.final))
    found = backward(chain, trajectory, adapter.parameters(), Plan.everywhere(chain.T, 3, 1.0), signals)
    found = by_network(adapter, found.gradient)
    expected = by_network(adapter, unrolled_gradient(chain, adapter, conditioning, noise))
    assert len(expected) == 1 + tiny_model.text_encoder_too
    for part, gradient in expected.items():
        error = relative(found[part], gradient)
        print(f"{part}: relative error {error:.1e}")
        assert sum(float(g.abs().sum()) for g in gradient) > 0 and error < 2e-5


def test_walk_over_part_of_the_batch_is_the_sum_over_that_part(tiny_model):
    """Roulette drops trajectories on the way; the others must not notice."""
    chain, adapter, conditioning = make(tiny_model)
    trajectory = rollout(chain, noise_for(tiny_model), conditioning)
    start = pathwise_start(tiny_model, trajectory.final)
    plan = Plan.everywhere(chain.T, 3, 1.0)
    plan.weight[2:, 0] = 0.0
    plan.weight[3:, 1] = 0.0
    plan.weight[1:, 2] = 2.0
    mixed = backward(chain, trajectory, adapter.parameters(), plan, Signals(torch.zeros(3), start)).gradient
    alone = []
    for sample in range(3):
        index = torch.tensor([sample])
        part = rollout(chain, noise_for(tiny_model, [3 + sample]), conditioning.select(index))
        signals = Signals(torch.zeros(1), start[index])
        alone.append(backward(chain, part, adapter.parameters(), plan.select(index), signals).gradient)
    assert relative(mixed, [sum(parts) for parts in zip(*alone, strict=True)]) < 2e-5


def test_likelihood_ratio_walk_equals_the_gradient_of_the_log_probability(tiny_model):
    chain, adapter, conditioning = make(tiny_model)
    trajectory = rollout(chain, noise_for(tiny_model), conditioning)
    advantage = torch.tensor([0.5, -1.0, 2.0])
    total = torch.zeros(())
    for t in range(1, chain.T + 1):
        if chain.sigma(t) > 0:
            mean = chain.mean(trajectory.latents[t], t, conditioning)
            log_p = -(trajectory.latents[t - 1] - mean).square().flatten(1).sum(1) / (2 * chain.sigma(t) ** 2)
            total = total + (advantage * log_p).sum()
    expected = torch.autograd.grad(total, adapter.parameters())
    sigmas = [chain.sigma(t) for t in range(1, chain.T + 1)]
    plan = Plan.everywhere(chain.T, 3, 0.0).with_deterministic_steps(sigmas)
    found = backward(chain, trajectory, adapter.parameters(), plan, Signals(advantage)).gradient
    assert relative(found, expected) < 1e-4


def test_kl_pull_is_the_gradient_of_the_exact_kl(tiny_model):
    chain, adapter, conditioning = make(tiny_model)
    trajectory = rollout(chain, noise_for(tiny_model), conditioning)
    kl = torch.zeros(())
    least = min(chain.sigma(t) for t in range(1, chain.T + 1) if chain.sigma(t) > 0)
    for t in range(1, chain.T + 1):
        mean = chain.mean(trajectory.latents[t], t, conditioning)
        with torch.no_grad(), adapter.disabled():
            base = chain.mean(trajectory.latents[t], t, conditioning)
        kl = kl + (mean - base).square().sum() / (2 * (chain.sigma(t) or least) ** 2)
    expected = torch.autograd.grad(-0.3 * kl, adapter.parameters())
    signals = Signals(torch.zeros(3), torch.zeros_like(trajectory.final))
    proximity = Regularization(adapter.disabled, kl_weight=0.3, kl_sigma=least)
    found = backward(chain, trajectory, adapter.parameters(), Plan.everywhere(chain.T, 3, 1.0), signals,
                 regularization=proximity)  # fmt: skip
    assert relative(found.gradient, expected) < 2e-5
    assert float(found.kl) == pytest.approx(float(kl.detach()), rel=1e-4)


def test_ratio_of_unchanged_weights_is_one_and_moves_with_them(tiny_model):
    chain, adapter, conditioning = make(tiny_model)
    trajectory = rollout(chain, noise_for(tiny_model), conditioning)
    sigmas = [chain.sigma(t) for t in range(1, chain.T + 1)]
    plan = Plan.everywhere(chain.T, 3, 0.0).with_deterministic_steps(sigmas)

    def replay():
        signals = Signals(torch.tensor([1.0, -1.0, 1.0]))
        return backward(
            chain,
            trajectory,
            adapter.parameters(),
            plan,
            signals,
            regularization=Regularization(clip_range=0.2),
        )

    assert float(replay().importance_ratio_error) < 1e-3
    assert float(replay().clipped) == 0
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(1.2)
    assert float(replay().importance_ratio_error) > 0.01


class LivePeak:
    """Peak of the bytes that autograd keeps for backward."""

    def __init__(self):
        self.live = self.peak = 0

    def pack(self, tensor):
        return _Held(self, tensor)

    def unpack(self, held):
        return held.tensor

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        self.hooks.__enter__()
        return self

    def __exit__(self, *raised):
        self.hooks.__exit__(*raised)


class _Held:
    def __init__(self, owner, tensor):
        self.owner, self.tensor = owner, tensor
        self.bytes = tensor.numel() * tensor.element_size()
        owner.live += self.bytes
        owner.peak = max(owner.peak, owner.live)

    def __del__(self):
        self.owner.live -= self.bytes


def update_peak(model, steps, options):
    """Bytes that an update's backward passes hold at most."""
    chain, adapter, conditioning = make(model, steps=steps)

    def scores(x0, prompts, gradient):
        return Scores(score(model, x0).detach(), pathwise_start(model, x0) if gradient else None)

    problem = Problem(chain, adapter.parameters(), scores, pathwise=True)
    method = method_class(options.name)(problem, options)
    shape = model.latent_shape(*model.default_size)
    batch = Batch(
        lambda index: Noise(index.tolist(), shape), conditioning, torch.zeros(3, dtype=torch.long), PROMPTS
    )
    gc.collect()
    with LivePeak() as watch:
        method.estimator.gradient(method.collect(batch, 0))
    adapter.detach()
    return watch.peak


@pytest.mark.slow
def test_memory_of_an_update_grows_with_neither_steps_nor_depth_nor_window(tiny_model):
    full = MethodConfig("full")
    base = update_peak(tiny_model, 4, full)
    assert base > 0
    assert update_peak(tiny_model, 20, full) == base
    for method in (
        MethodConfig("truncated", depth=1),
        MethodConfig("truncated", depth=16),
        MethodConfig("rlr", window=1),
        MethodConfig("rlr", window=15),
        MethodConfig("adaptive"),
    ):
        assert update_peak(tiny_model, 20, method) <= base


# --- samples, perturbations, plans ---


def test_perturbed_weights_estimate_the_slope_along_the_perturbation(tiny_model):
    """Of each network by itself: with a text encoder, the perturbation must reach what prompts mean."""
    chain, adapter, conditioning = make(tiny_model)
    noise = noise_for(tiny_model)
    expected = by_network(adapter, unrolled_gradient(chain, adapter, conditioning, noise))
    for part, parameters in by_network(adapter, adapter.parameters()).items():
        perturbation = Perturbation(parameters, seed=8, scale=3e-3)
        rewards = {}
        for sign in (1, -1):
            perturbation.switch(sign)
            rewards[sign] = score(tiny_model, rollout(chain, noise, conditioning).final)
        perturbation.switch(0)
        found = [torch.zeros_like(p) for p in parameters]
        perturbation.add_gradient(found, rewards[1], rewards[-1])
        directions = list(perturbation.directions())
        slope = sum(float((g * d).sum()) for g, d in zip(expected[part], directions, strict=True))
        assert relative(found, [slope * direction for direction in directions]) < 0.01


def test_sample_does_not_depend_on_its_batch(tiny_model):
    chain, _, conditioning = make(tiny_model)
    together = rollout(chain, noise_for(tiny_model), conditioning)
    alone = rollout(chain, noise_for(tiny_model, [5]), conditioning.select(torch.tensor([2])))
    assert torch.equal(together.latents[chain.T][2:], alone.latents[chain.T])
    assert torch.equal(together.noises[chain.T][2:], alone.noises[chain.T])
    assert torch.allclose(together.final[2:], alone.final, atol=1e-4)


def test_rollout_goes_on_from_any_step(tiny_model):
    chain, _, conditioning = make(tiny_model)
    noise = noise_for(tiny_model)
    whole = rollout(chain, noise, conditioning)
    upper = rollout(chain, noise, conditioning, stop=2)
    lower = rollout(chain, noise, conditioning, start=2, latents=upper.final, keep=False)
    assert torch.equal(lower.final, whole.final)
    assert list(lower.latents) == [0]


def test_stages_change_the_prompt_on_the_way(tiny_model):
    staged = [Prompt("x", ("a red circle", "a blue square", "a cat"))]
    book = PromptBook(tiny_model, staged, boundaries=[0.25, 0.5])
    plain = PromptBook(tiny_model, [Prompt(text, (text,)) for text in PROMPTS])
    for t, stage in {8: 0, 7: 0, 6: 1, 5: 1, 4: 2, 1: 2}.items():
        rows = book.conditioning([0]).at(t, 8, guided=False)
        expected = plain.conditioning([stage]).at(t, 8, guided=False)
        assert all(torch.equal(rows[name], expected[name]) for name in expected)


def test_evaluations_count_samples_and_guidance(tiny_model):
    chain, adapter, conditioning = make(tiny_model, steps=4)
    trajectory = rollout(chain, noise_for(tiny_model), conditioning)
    assert (chain.evaluations.forward, chain.evaluations.backward) == (4 * 3 * 2, 0)
    plan = Plan.everywhere(4, 3, 1.0)
    plan.weight[3:] = 0
    backward(chain, trajectory, adapter.parameters(), plan, Signals(torch.zeros(3), trajectory.final))
    assert (chain.evaluations.forward, chain.evaluations.backward) == (24, 2 * 3 * 2)


def test_perturbation_comes_and_goes_without_a_trace():
    parameters = [torch.randn(3, 4), torch.randn(5)]
    before = [parameter.clone() for parameter in parameters]
    perturbation = Perturbation(parameters, seed=7, scale=0.1)
    moved = []
    for sign in (1, -1):
        perturbation.switch(sign)
        moved.append([parameter.clone() for parameter in parameters])
    perturbation.switch(0)
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    for plus, minus, middle, direction in zip(*moved, before, perturbation.directions(), strict=True):
        assert torch.allclose(plus - middle, 0.1 * direction, atol=1e-6)
        assert torch.allclose(plus + minus, 2 * middle, atol=1e-6)


def test_depths_have_the_survival_they_were_drawn_for():
    import numpy as np

    survive = survival(np.array([0, 4.0, 3, 5, 1, 0.5]), budget=3.0)
    assert survive[1] == 1 and (np.diff(survive[1:]) <= 1e-12).all()
    assert survive[1:].sum() == pytest.approx(3.0, abs=1e-6)
    rng = np.random.default_rng(0)
    depths = np.concatenate([draw_depths(survive, 16, rng) for _ in range(4000)])
    for t in range(1, 6):
        assert (depths >= t).mean() == pytest.approx(survive[t], abs=0.005)
    totals = [draw_depths(survive, 16, rng).sum() for _ in range(200)]
    assert max(totals) - min(totals) <= 6  # systematic: the cost barely varies


@pytest.mark.parametrize(
    "name", quick(["full", "adaptive", "likelihood_ratio", "ddpo", "truncated"], "adaptive")
)
def test_graphs_kept_by_the_rollout_give_the_same_gradient_to_the_last_bit(tiny_model, name):
    chain, adapter, conditioning = make(tiny_model)

    def scores(x0, prompts, gradient):
        return Scores(score(tiny_model, x0).detach(), pathwise_start(tiny_model, x0) if gradient else None)

    shape = tiny_model.latent_shape(*tiny_model.default_size)
    groups = torch.zeros(3, dtype=torch.long)
    batch = Batch(lambda index: Noise(index.tolist(), shape), conditioning, groups, PROMPTS)
    found, costs = [], []
    for kept in (0, 2, chain.T):
        problem = Problem(chain, adapter.parameters(), scores, pathwise=True, graph_steps=kept)
        method = method_class(name)(problem, MethodConfig(name, depth=3, budget=1.0))
        before = chain.evaluations.forward + chain.evaluations.backward
        found.append([e.gradient for e in method.gradients(method.collect(batch, 1))])
        costs.append(chain.evaluations.forward + chain.evaluations.backward - before)
    assert costs[0] > costs[1] > costs[2]
    for other in found[1:]:
        for whole, estimate in zip(found[0], other, strict=True):
            assert all(map(torch.equal, whole, estimate))
