"""Every family against diffusers' own pipeline of tiny random networks: pictures, gradients, LoRA files."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from adapters import fill
from marks import quick
from pipeline_runs import (
    PROMPTS,
    SIZE,
    chain_of,
    diffusers_pipeline,
    frames_of,
    our_pictures,
    pipeline_pictures,
    score,
    unrolled_gradient,
)
from runs import small_config
from tiny_pipelines import BUILDERS, write_pipeline

from rlr_core.config import config_from_dict
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.models.flow_transformer import FlowTransformer
from rlr_core.diffusion.models.loading import load_model, recognize
from rlr_core.diffusion.rollout import rollout
from rlr_core.errors import UserError
from rlr_core.gradients.backward import Signals, backward
from rlr_core.gradients.plan import Plan
from rlr_core.lora import apply_lora, attach
from rlr_core.training.trainer import train


@pytest.fixture(scope="module", params=quick(BUILDERS, "stable-diffusion-xl", "flux", "wan"))
def folder(request, tmp_path_factory):
    return request.param, write_pipeline(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(folder[1], device="cpu")


@pytest.fixture
def model(loaded):
    yield loaded
    loaded.eject()
    loaded.gradient_checkpointing(False)


def test_the_folder_is_recognized_and_loads(folder, model):
    family, path = folder
    assert recognize(path).family == model.family == family
    assert not any(p.requires_grad for network in model.networks.values() for p in network.parameters())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_without_noise_are_those_of_the_pipeline(folder, model, guidance):
    family, path = folder
    ours = our_pictures(model, guidance)
    theirs = pipeline_pictures(family, diffusers_pipeline(family, path), model, guidance)
    assert ours.shape == theirs.shape and ours.std() > 0.01
    error = float((ours - theirs).abs().max())
    print(f"{family}, guidance {guidance}: largest difference {error:.1e}")
    assert error < 1e-4


def test_prompt_size_and_guidance_count(folder, model):
    """Equal pictures mean something only if they depend on what they are told."""
    pictures = our_pictures(model, 3.0)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
    if model.guidance_kind != "none":
        assert (our_pictures(model, 1.0) - pictures).abs().max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_walk_equals_autograd_through_the_unrolled_chain(model, eta):
    adapter = fill(attach(model, rank=2), std=0.2)
    chain, conditioning, noise = chain_of(model, guidance=2.5, eta=eta, steps=3)
    trajectory = rollout(chain, noise, conditioning)
    leaf = trajectory.final.clone().requires_grad_()
    (start,) = torch.autograd.grad(score(model, leaf).sum(), leaf)
    plan = Plan.everywhere(chain.T, 2, 1.0)
    signals = Signals(torch.zeros(2), start)
    found = backward(chain, trajectory, adapter.parameters(), plan, signals).gradient
    expected = unrolled_gradient(chain, adapter.parameters(), conditioning, noise)
    difference = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(b.square().sum()) for b in expected)
    print(f"{model.family}: relative error {(difference / size) ** 0.5:.1e}")
    assert size > 0 and difference < (1e-4**2) * size


def test_checkpointing_changes_no_gradient_and_keeps_less(model):
    adapter = fill(attach(model, rank=2), std=0.2)
    chain, conditioning, noise = chain_of(model, steps=2)
    gradients, sizes = [], []
    for enabled in (False, True):
        model.gradient_checkpointing(enabled)
        gradients.append(unrolled_gradient(chain, adapter.parameters(), conditioning, noise))
        latents = noise.initial().requires_grad_()
        step = kept_bytes(model, lambda latents=latents: chain.mean(latents, 2, conditioning))
        sizes.append((step, kept_bytes(model, lambda latents=latents: model.decode(latents))))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)
    (step, picture), (less_step, less_picture) = sizes
    print(
        f"{model.family}: {less_step / step:.2f} of a step is kept, {less_picture / picture:.2f} of decoding"
    )
    assert less_step < 0.6 * step and less_picture < 0.6 * picture


def kept_bytes(model, function):
    """Bytes that autograd keeps for the way back, beside the weights."""
    networks = [*model.networks.values(), model.vae]
    weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(size for place, size in kept.items() if place not in weights)


def test_half_precision_weights_give_float32_outputs_near_the_float32_model(folder, model):
    half = load_model(folder[1], device="cpu", dtype="bf16")
    outputs, gradients = [], []
    for one in (model, half):
        adapter = fill(attach(one, rank=2, seed=1), std=0.1)
        chain, conditioning, noise = chain_of(one, guidance=2.0)
        x = noise.initial().requires_grad_()
        outputs.append(chain.mean(x, 2, conditioning))
        gradients.append(torch.autograd.grad(score(one, outputs[-1]).sum(), [x, *adapter.parameters()],
                                             allow_unused=True, materialize_grads=True))  # fmt: skip
    assert outputs[1].dtype == torch.float32 and half.decode(x.detach()).dtype == torch.float32
    assert 0 < (outputs[0] - outputs[1]).norm() < 0.05 * outputs[0].norm()
    assert {gradient.dtype for gradient in gradients[1]} == {torch.float32}
    exact, near = (torch.cat([g.flatten() for g in each]) for each in gradients)
    assert torch.cosine_similarity(exact, near, 0) > 0.98


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_written_lora_is_what_diffusers_loads(folder, model, targets, tmp_path):
    family, path = folder
    adapter = fill(attach(model, rank=4, alpha=10, targets=targets), std=0.2)
    layout = "diffusers" if (family, targets) == ("animatediff", "all") else None
    tuned, file = our_pictures(model), adapter.save(tmp_path / "lora.safetensors", layout)
    adapter.detach()
    base = our_pictures(model)
    pipeline = diffusers_pipeline(family, path)
    pipeline.load_lora_weights(file)
    if family == "wan-2.2-a14b":
        pipeline.load_lora_weights(file.with_stem("lora_low_noise"), load_into_transformer_2=True)
    theirs = pipeline_pictures(family, pipeline, model)
    effect = float((tuned - base).abs().max())
    print(f"{family}: effect {effect:.3f}, difference {float((tuned - theirs).abs().max()):.1e}")
    assert effect > 1e-2
    torch.testing.assert_close(tuned, theirs, rtol=0, atol=1e-5)


def test_a_written_lora_comes_back_exactly(model, tmp_path):
    adapter = fill(attach(model, rank=4, alpha=10, targets="all"))
    tuned, file = our_pictures(model), adapter.save(tmp_path / "lora.safetensors")
    layers = list(adapter.layers)
    adapter.detach()
    assert list(apply_lora(model, file).layers) == layers
    torch.testing.assert_close(our_pictures(model), tuned, rtol=0, atol=1e-5)


def test_given_pictures_become_latents_of_the_right_shape(model):
    if frames_of(model.family) > 1:
        with pytest.raises(UserError, match="cannot learn from given pictures"):
            model.encode(torch.zeros(1, 3, 16, 16))
        return
    pictures = torch.rand(2, 3, SIZE["height"], SIZE["width"], generator=torch.Generator().manual_seed(0))
    latents = model.encode(pictures)
    assert latents.shape == (2, *model.latent_shape(**SIZE)) and latents.std() > 0
    with pytest.raises(UserError, match="multiples of"):
        model.latent_shape(17, 16)


def test_prompts_of_any_length_share_a_table(model):
    texts = ["a", "a cat", "a red circle above a blue square " * 2]
    book = PromptBook(model, [prompt(text) for text in texts], encode_batch=1)
    apart = PromptBook(model, [prompt(texts[1])])
    x = chain_of(model)[2].initial()[:1]
    together = model.denoise(x, 500.0, book.conditioning([2, 1]).select(torch.tensor([1])).at(1, 1, False))
    alone = model.denoise(x, 500.0, apart.conditioning([0]).at(1, 1, False))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def prompt(text):
    from rlr_core.config.prompts import Prompt

    return Prompt(text, (text,))


def test_text_encoders_are_dropped_when_released_and_still_encode(model):
    before = model.encode_prompts(list(PROMPTS))
    held = None
    if isinstance(model, FlowTransformer):
        held = weakref.ref(next(part for part in model._text.components.values() if hasattr(part, "forward")))
    model.release_text_encoders()
    gc.collect()
    assert held is None or held() is None
    after = model.encode_prompts(list(PROMPTS))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", quick(["adaptive", "rlr", "ddpo", "nft", "dpo"], "adaptive"))
def test_a_run_trains_the_family(folder, method, tmp_path):
    family, path = folder
    frames = frames_of(family)
    config = config_from_dict(
        small_config(
            tmp_path / "run",
            steps=2,
            batch=4,
            sampler={"steps": 4, "guidance": 2.0, "frames": frames, **SIZE},
            method={"name": method},
            evaluation={"samples": 2, "every": 2, "batch": 2},
            prompts=PROMPTS,
        )
    )
    result = train(load_model(path, device="cpu"), reward, config)
    assert [row["step"] for row in result.metrics if "gradient/norm" in row] == [1, 2]
    assert all(0 < row["gradient/norm"] < float("inf") for row in result.metrics if "gradient/norm" in row)
    assert any(m.up.abs().max() > 0 for m in result.lora.adapter.modules().values())


def reward(images, prompts):
    """Of pictures and videos."""
    return images.select(-3, 0).flatten(1).mean(1) - images.narrow(-3, 1, 2).flatten(1).mean(1)
