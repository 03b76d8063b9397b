"""What only a GPU can show: half-precision weights, memory as the allocator counts it, no loop that waits."""

from __future__ import annotations

import contextlib

import pytest
import torch
from adapters import attach, fill

from rlr_core.config import EvaluationConfig, SamplerConfig, TrainConfig
from rlr_core.config.prompts import Prompt
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.models.loading import load_model
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError
from rlr_core.gradients.backward import Signals, backward
from rlr_core.gradients.plan import Plan
from rlr_core.training.preflight import check_memory
from rlr_core.training.setup import build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
PROMPTS = ["a red circle", "a blue square", "a red circle above a blue square", "a green triangle"]


def make(dtype: str, steps: int = 6):
    """The built-in model's chain, its adapter with weights, conditioning and noise of the prompts."""
    model = load_model("demo", device=DEVICE, dtype=dtype)
    adapter = fill(attach(model, rank=4), std=0.05)
    chain = Chain(model, model.schedule(SamplerConfig(steps=steps, eta=1.0)), 2.0)
    book = PromptBook(model, [Prompt(text, (text,)) for text in PROMPTS])
    noise = Noise(range(len(PROMPTS)), model.latent_shape(*model.default_size), model.device)
    return chain, adapter, book.conditioning(range(len(PROMPTS))), noise


def start(chain, latents):
    """d mean brightness / d latents."""
    leaf = latents.clone().requires_grad_()
    return torch.autograd.grad(chain.model.decode(leaf).mean((1, 2, 3)).sum(), leaf)[0]


def walked_gradient(dtype: str):
    """The gradient of the mean brightness, half by each kind of cotangent, as one vector."""
    chain, adapter, conditioning, noise = make(dtype)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    trajectory = rollout(chain, noise, conditioning)
    signals = Signals(torch.linspace(-1, 1, len(PROMPTS), device=DEVICE), start(chain, trajectory.final))
    plan = Plan.everywhere(chain.T, len(PROMPTS), 0.5)
    result = backward(chain, trajectory, adapter.parameters(), plan, signals)
    assert {gradient.dtype for gradient in result.gradient} == {torch.float32}
    return torch.cat([gradient.flatten() for gradient in result.gradient])


def test_gradient_on_bfloat16_weights_points_where_that_on_float32_weights_does():
    exact, rough = walked_gradient("fp32"), walked_gradient("bf16")
    assert exact.norm() > 0
    assert torch.cosine_similarity(exact, rough, dim=0) > 0.97
    assert 0.9 < rough.norm() / exact.norm() < 1.1


def test_neither_the_rollout_nor_the_walk_waits_for_the_device():
    chain, adapter, conditioning, noise = make("bf16")
    plan = Plan.everywhere(chain.T, len(PROMPTS), 0.5)
    plan.weight[3:, 0] = 0.0  # one trajectory is dropped on the way
    advantage = torch.linspace(-1, 1, len(PROMPTS), device=DEVICE)

    def update(pathwise):
        trajectory = rollout(chain, noise, conditioning)
        signals = Signals(advantage, pathwise)
        return trajectory.final, backward(chain, trajectory, adapter.parameters(), plan, signals)

    final, first = update(torch.zeros_like(noise.initial()))  # libraries wait when they are used first
    pathwise = start(chain, final)
    torch.cuda.synchronize()
    with no_waiting():
        _, second = update(pathwise)
    pairs = zip(first.gradient, second.gradient, strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)  # the guarded walk did walk


@contextlib.contextmanager
def no_waiting():
    """Inside, torch raises an error wherever it would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def update_peak(steps: int) -> int:
    """Most bytes at a time of a rollout and its walk, beside model and adapter."""
    chain, adapter, conditioning, noise = make("bf16", steps)
    plan = Plan.everywhere(chain.T, len(PROMPTS), 0.5)
    for _ in range(2):  # the first time libraries take their workspaces
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trajectory = rollout(chain, noise, conditioning)
        signals = Signals(torch.ones(len(PROMPTS), device=DEVICE), torch.ones_like(trajectory.final))
        backward(chain, trajectory, adapter.parameters(), plan, signals)
        del trajectory, signals
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_peak_memory_of_50_steps_is_that_of_10_and_the_latents_in_between():
    few, many = update_peak(10), update_peak(50)
    latents = 4 * len(PROMPTS) * 4 * 8 * 8  # bytes of the batch's latents, float32
    assert few > 100 * latents
    assert many < 1.05 * few + 2.5 * 40 * latents  # x_t and z_t of 40 more steps


@pytest.fixture
def parts(tmp_path):
    """parts(**changes): a run on the built-in model, built; the adapters are taken out again."""
    built = []

    def make_parts(**changes):
        sampler = changes.pop("sampler", {})
        config = TrainConfig(
            model="demo",
            reward="brightness",
            prompts=PROMPTS,
            steps=2,
            batch=4,
            samples_per_prompt=2,
            out=str(tmp_path / f"run{len(built)}"),
            sampler=SamplerConfig(steps=3, **sampler),
            evaluation=EvaluationConfig(samples=2),
            **changes,
        )
        built.append(build(load_model("demo", device=DEVICE), "brightness", config))
        return built[-1]

    yield make_parts
    for one in built:
        one.adapter.detach()


def test_preflight_measures_what_a_picture_takes_on_the_device(parts):
    check_memory(parts())  # libraries take their workspaces
    plain = check_memory(parts())
    large = check_memory(parts(sampler={"height": 128, "width": 128}))
    saving = check_memory(parts(gradient_checkpointing=True))
    assert plain.step > 0 and plain.picture > 0
    assert large.step > plain.step and large.picture > plain.picture
    assert saving.step < plain.step


def test_preflight_refuses_what_the_device_has_no_room_for(parts, monkeypatch):
    check_memory(parts())
    run = parts(micro_batch=4)
    taken = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1024 - taken, 2**40))
    with pytest.raises(UserError, match="GiB are free"):
        check_memory(run)
