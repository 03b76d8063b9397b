"""Gradients of the family are exact: against finite differences, and the walk's against autograd's."""

from __future__ import annotations

import pytest
import torch
from native_models import NAMES
from native_runs import Redness, chain_of, family, noise_of, norm, random_adapter, slopes


def step_and_picture(model, chain, conditioning, x):
    """A number that one step of the chain and the decoded picture go into."""
    generator = torch.Generator().manual_seed(0)

    def value():
        mean = chain.mean(x, 3, conditioning)
        pixels = model.decode(mean)
        weights = torch.randn(pixels.shape, generator=generator.manual_seed(0))
        return (pixels * weights).double().mean() + mean.double().square().mean()

    return value


def latents_of(model):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, *model.latent_shape(*model.default_size), generator=generator).requires_grad_()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(native, build, name):
    model = family(native, build(name))
    with native.running(model):
        chain, conditioning = chain_of(model)
        parameters = random_adapter(model).parameters()
        x = latents_of(model)
        value = step_and_picture(model, chain, conditioning, x)
        by_autograd, by_differences = slopes(value, [x, *parameters], step=0.02)
        assert by_autograd == pytest.approx(by_differences, rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient(native, build, name):
    model = family(native, build(name))
    with native.running(model):
        chain, conditioning = chain_of(model)
        parameters = random_adapter(model, targets="all").parameters()
        x = latents_of(model)
        value = step_and_picture(model, chain, conditioning, x)
        plain = torch.autograd.grad(value(), [x, *parameters], allow_unused=True)
        model.gradient_checkpointing(True)
        again = torch.autograd.grad(value(), [x, *parameters], allow_unused=True)
        model.gradient_checkpointing(False)
        pairs = [(a, b) for a, b in zip(plain, again, strict=True) if a is not None]
        assert norm([a - b for a, b in pairs]) < 1e-5 * norm([a for a, _ in pairs])


@pytest.mark.parametrize("name", NAMES)
def test_the_walk_is_autograd_through_the_whole_chain(native, build, name):
    """Every step and the decoder, guided, prompts of unequal length, against one graph of them all."""
    from rlr_core.diffusion.rollout import rollout
    from rlr_core.gradients.backward import Signals, backward
    from rlr_core.gradients.plan import Plan

    model, reward = family(native, build(name)), Redness()
    with native.running(model):
        chain, conditioning = chain_of(model, steps=3, eta=0.5)
        parameters = random_adapter(model).parameters()
        noise = noise_of(model)

        x = noise.initial()
        for t in range(chain.T, 0, -1):
            x = chain.mean(x, t, conditioning) + chain.sigma(t) * noise.at(t)
        wanted = torch.autograd.grad(reward(model.decode(x), []).sum(), parameters, allow_unused=True)
        wanted = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, wanted, strict=True)]

        trajectory = rollout(chain, noise, conditioning)
        leaf = trajectory.final.detach().requires_grad_()
        (pathwise,) = torch.autograd.grad(reward(model.decode(leaf), []).sum(), leaf)
        plan = Plan.everywhere(chain.T, 3, 1.0)
        found = backward(chain, trajectory, parameters, plan, Signals(torch.zeros(3), pathwise)).gradient
        assert norm([a - b for a, b in zip(found, wanted, strict=True)]) < 1e-4 * norm(wanted)
        assert norm(wanted) > 0


def test_the_base_is_untouched_bit_for_bit_with_the_adapter_off(native, build):
    model = family(native, build("flux"))
    with native.running(model), torch.no_grad():
        rows = model.encode_prompts(["a cat"])
        x = torch.randn(1, *model.latent_shape(*model.default_size))
        before = model.denoise(x, 0.7, rows)
        adapter = random_adapter(model)
        assert not torch.equal(model.denoise(x, 0.7, rows), before)
        with adapter.disabled():
            assert torch.equal(model.denoise(x, 0.7, rows), before)
        adapter.strength = 0.0
        assert torch.equal(model.denoise(x, 0.7, rows), before)
        adapter.detach()
        assert torch.equal(model.denoise(x, 0.7, rows), before) and not model.has_adapter()


def test_queries_keys_and_values_share_what_their_adapters_keep(native, build):
    """Of an attention's three layers autograd keeps one copy of their input."""
    model = family(native, build("wan21"))
    with native.running(model):
        model.load_weights()
        random_adapter(model)
        attention = model.networks["diffusion_model"].blocks[0].self_attn
        x = torch.randn(1, 5, 48)
        kept = set()

        def keep(tensor):
            if tensor.shape == x.shape:
                kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = [layer(x) for layer in (attention.q, attention.k, attention.v)]
        assert len(kept) == 1 and all(output.requires_grad for output in outputs)
