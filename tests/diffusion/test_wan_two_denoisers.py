"""Wan 2.2 A14B, with a denoiser for much noise and one for little: which of them is trained, where they are
while they take turns, and what becomes of their LoRA files."""

from __future__ import annotations

import json

import pytest
import torch
from adapters import fill
from pipeline_runs import (
    PROMPTS,
    SIZE,
    chain_of,
    diffusers_pipeline,
    our_pictures,
    pipeline_pictures,
    score,
    unrolled_gradient,
)
from runs import small_config
from tiny_pipelines import write_pipeline

from rlr_core.config import config_from_dict
from rlr_core.diffusion.models.loading import load_model
from rlr_core.diffusion.rollout import rollout
from rlr_core.errors import UserError
from rlr_core.gradients.backward import Signals, backward
from rlr_core.gradients.plan import Plan
from rlr_core.lora import apply_lora, attach
from rlr_core.training.trainer import train

FAMILY = "wan-2.2-a14b"
OF = {"high_noise": {"transformer"}, "low_noise": {"transformer_2"}, "all": {"transformer", "transformer_2"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(FAMILY, tmp_path_factory.mktemp("a14b"))


@pytest.fixture
def model(folder):
    return load_model(folder, device="cpu")


def adapted(model):
    """The denoisers that have an adapter."""
    return {
        name for name in model.denoisers if any("lora" in key for key in model.networks[name].state_dict())
    }


def walked(chain, parameters, conditioning, noise, **options):
    trajectory = rollout(chain, noise, conditioning, **options)
    leaf = trajectory.final.clone().requires_grad_()
    (start,) = torch.autograd.grad(score(chain.model, leaf).sum(), leaf)
    signals = Signals(torch.zeros(2), start)
    return backward(chain, trajectory, parameters, Plan.everywhere(chain.T, 2, 1.0), signals).gradient


@pytest.mark.parametrize("denoisers", OF)
def test_the_gradient_of_either_or_both_is_autograds(model, denoisers):
    adapter = fill(attach(model, rank=2, denoisers=denoisers), std=0.2)
    assert adapted(model) == OF[denoisers]
    chain, conditioning, noise = chain_of(model, guidance=2.5, eta=1.0, steps=4)
    times = [chain.step(t).timestep for t in range(1, 5)]
    assert min(times) < model.boundary < times[-2], (
        "both denoisers have more than one step or the test shows little"
    )
    found = walked(chain, adapter.parameters(), conditioning, noise)
    expected = unrolled_gradient(chain, adapter.parameters(), conditioning, noise)
    difference = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(b.square().sum()) for b in expected)
    assert size > 0 and difference < (1e-4**2) * size


def weights_there(model):
    """Names of the denoisers whose weights are not those that wait in main memory."""
    return {
        name
        for name, weights in model.turns._weights.items()
        if any(weight.data_ptr() != home.data_ptr() for weight, home in weights)
    }


@pytest.mark.parametrize("graph_steps", [(), (1, 2, 3, 4)], ids=["recomputed", "kept graphs"])
def test_taking_turns_changes_no_gradient_and_one_is_there_at_a_time(model, graph_steps):
    adapter = fill(attach(model, rank=2), std=0.2)
    model.gradient_checkpointing(True)
    chain, conditioning, noise = chain_of(model, guidance=2.5, eta=1.0, steps=4)
    parameters = adapter.parameters()
    usual = walked(chain, parameters, conditioning, noise)
    model.take_turns()
    assert weights_there(model) == set()
    seen = []
    chain.on_evaluation = lambda: seen.append(model.turns.there)
    in_turns = walked(chain, parameters, conditioning, noise, graph_steps=graph_steps)
    assert all(torch.equal(a, b) for a, b in zip(usual, in_turns, strict=True))
    high, low = model.denoisers
    changes = [b for a, b in zip([None, *seen], [*seen, model.turns.there], strict=True) if a != b]
    assert changes in ([low, high], [high, low, high]), "over the boundary once, and back once"
    assert weights_there(model) == {high}
    model.release_text_encoders()
    model.turns.send_home()
    assert weights_there(model) == set()


def test_an_adapter_can_be_attached_and_taken_out_while_they_take_turns(model, folder):
    base = our_pictures(model)
    model.take_turns()
    adapter = fill(attach(model, rank=2), std=0.2)
    with_adapter = our_pictures(model)
    assert not torch.equal(with_adapter, base)
    adapter.detach()
    torch.testing.assert_close(our_pictures(model), base, rtol=0, atol=0)
    assert model.make_room(1) == 0  # there is no more to be had


@pytest.mark.parametrize("denoisers", ["high_noise", "low_noise"])
def test_one_denoisers_file_is_what_diffusers_loads_into_it(folder, model, denoisers, tmp_path):
    adapter = fill(attach(model, rank=4, alpha=10, targets="all", denoisers=denoisers), std=0.2)
    tuned, file = our_pictures(model), adapter.save(tmp_path / "lora.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]
    adapter.detach()
    pipeline = diffusers_pipeline(FAMILY, folder)
    pipeline.load_lora_weights(file, load_into_transformer_2=denoisers == "low_noise")
    theirs = pipeline_pictures(FAMILY, pipeline, model)
    assert (tuned - our_pictures(model)).abs().max() > 1e-2
    torch.testing.assert_close(tuned, theirs, rtol=0, atol=1e-5)
    apply_lora(model, file)
    assert adapted(model) == OF[denoisers]
    torch.testing.assert_close(our_pictures(model), tuned, rtol=0, atol=1e-5)


def test_a_half_without_the_other_or_without_a_word_of_which_it_is_is_refused(model, folder, tmp_path):
    from safetensors.torch import load, save_file

    adapter = fill(attach(model, rank=2))
    file = adapter.save(tmp_path / "lora.safetensors")
    adapter.detach()
    tensors = load(file.read_bytes())
    (tmp_path / "lora_low_noise.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="one half of a LoRA; put the other, lora_low_noise.safetensors"):
        apply_lora(model, file)
    save_file(tensors, tmp_path / "mine.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="does not say which of the two denoisers"):
        apply_lora(model, tmp_path / "mine.safetensors")
    assert adapted(model) == set()
    save_file(tensors, tmp_path / "mine-LowNoise.safetensors", {"format": "pt"})
    apply_lora(model, tmp_path / "mine-LowNoise.safetensors").detach()
    apply_lora(model, tmp_path / "other.safetensors")
    assert adapted(model) == {"transformer_2"}


@pytest.mark.parametrize("denoisers", ["low_noise", "all"])
def test_a_run_trains_what_its_config_says_and_starts_from_what_it_wrote(folder, denoisers, tmp_path):
    settings = small_config(
        tmp_path / "run",
        steps=2,
        batch=4,
        sampler={"steps": 4, "guidance": 2.0, "frames": 5, **SIZE},
        evaluation={"samples": 2, "every": 2, "batch": 2},
        lora={"denoisers": denoisers, "rank": 2},
        prompts=PROMPTS,
    )
    result = train(load_model(folder, device="cpu"), reward, config_from_dict(settings))
    modules = result.lora.adapter.modules()
    changed = {name.partition(".")[0] for name, module in modules.items() if module.up.abs().max() > 0}
    assert changed == OF[denoisers]
    file = tmp_path / "run/lora.safetensors"
    again = apply_lora(load_model(folder, device="cpu"), file).modules()
    assert all(torch.equal(again[name].up, module.up) for name, module in modules.items())


def reward(images, prompts):
    return images.select(-3, 0).flatten(1).mean(1) - images.narrow(-3, 1, 2).flatten(1).mean(1)


def test_a_model_with_one_denoiser_has_none_for_much_noise(tmp_path):
    single = load_model(write_pipeline("wan", tmp_path), device="cpu")
    with pytest.raises(UserError, match="has one denoiser for all noise; set lora.denoisers to all"):
        attach(single, denoisers="high_noise")


@pytest.mark.parametrize("ratio", ["half", 0, 1.5, True, []])
def test_an_odd_boundary_is_refused(tmp_path, ratio):
    index = write_pipeline(FAMILY, tmp_path) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"boundary_ratio": ratio}))
    with pytest.raises(UserError, match="boundary_ratio in .* is .*, not between 0 and 1"):
        load_model(tmp_path, device="cpu")


def test_the_second_denoiser_is_missed_and_must_be_for_text(folder, tmp_path):
    import shutil

    broken = shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(broken / "transformer_2")
    with pytest.raises(UserError, match="is incomplete: no transformer_2/config.json"):
        load_model(broken, device="cpu")
