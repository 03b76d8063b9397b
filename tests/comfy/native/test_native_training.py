"""Runs of the engine's own trainer on tiny native models, and what a run leaves behind."""

from __future__ import annotations

import pytest
import torch
from native_models import NAMES
from native_runs import TEXTS, Redness, chain_of, family, noise_of

RATES = {"sd15": 3e-2}
"""Learning rates other than the usual one: this network's LoRA hardly acts at it."""


def config(tmp_path, rate=1e-2, **changes):
    """Three updates on two prompts, watched on other noise."""
    from rlr_core.config import EvaluationConfig, LoraConfig, OptimizerConfig, SamplerConfig, TrainConfig

    settings = {
        "prompts": TEXTS[:2],
        "steps": 3,
        "batch": 4,
        "samples_per_prompt": 2,
        "micro_batch": 4,
        "decode_batch": 4,
        "method": "full",
        "out": str(tmp_path / "run"),
        "sampler": SamplerConfig(steps=3, eta=0.5, guidance=2.0),
        "lora": LoraConfig(rank=4, targets="all"),
        "optimizer": OptimizerConfig(learning_rate=rate, warmup=0, max_grad_norm=0.0),
        "evaluation": EvaluationConfig(samples=8, every=100, batch=4),
    }
    return TrainConfig(**settings | changes)


@pytest.mark.parametrize("name", NAMES)
def test_three_updates_raise_the_reward_on_held_out_noise(native, build, name, tmp_path):
    from rlr_core.training.trainer import train

    model = family(native, build(name))
    with native.running(model):
        run = train(model, Redness(), config(tmp_path, RATES.get(name, 1e-2)))
        before, after = run.metrics[0]["reward/held_out"], run.metrics[-1]["reward/held_out"]
    assert run.step == 3 and after > before


@pytest.mark.parametrize("method", ["adaptive", "rlr", "nft", "likelihood_ratio"])
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_other_methods_run_too(native, build, name, method, tmp_path):
    """Walks with likelihood ratios and perturbations, and a method that learns from noised pictures."""
    from rlr_core.training.trainer import train

    model = family(native, build(name))
    with native.running(model):
        run = train(model, Redness(), config(tmp_path, method=method))
        moved = [p.abs().max() for k, p in run.lora.adapter.state_dict().items() if "lora_B" in k]
        assert run.step == 3 and all(value.isfinite() for value in moved) and max(moved) > 0


def test_everything_is_given_back(native, build, tmp_path):
    """Layers, kernels, flags and weights are as before, however the run ends; the MODEL samples as before."""
    import comfy.ldm.common_dit
    import comfy.model_management as mm
    from native_runs import ksampler

    from rlr_core.training.trainer import train

    sockets = build("flux")
    noise = noise_of(family(native, sockets)).initial()
    before = ksampler(sockets, noise, "simple", 3, 1.0)
    weights = {name: tensor.clone() for name, tensor in sockets.model.model.state_dict().items()}
    flags = getattr(mm, "in_training", None), comfy.ldm.common_dit.rms_norm

    class Stop(BaseException):
        pass

    def stop(event):
        if event.kind == "update":
            raise Stop

    model = family(native, sockets)
    with pytest.raises(Stop), native.running(model):
        train(model, Redness(), config(tmp_path), on_event=stop)
    networks = [sockets.model.model, sockets.vae.first_stage_model]
    own = [set(vars(m)) & {"forward", "_conv_forward"} for network in networks for m in network.modules()]
    assert not any(own) and not model.has_adapter()
    assert (getattr(mm, "in_training", None), comfy.ldm.common_dit.rms_norm) == flags
    now = sockets.model.model.state_dict()
    assert weights.keys() == now.keys() and all(torch.equal(now[name], weights[name]) for name in weights)
    assert torch.equal(ksampler(sockets, noise, "simple", 3, 1.0), before)


def test_weights_are_never_copied(native, build):
    """What autograd can work with lies over ComfyUI's own memory."""
    sockets = build("wan21")
    network = sockets.model.model.diffusion_model
    before = {name: tensor.data_ptr() for name, tensor in network.named_parameters()}
    assert all(tensor.is_inference() for tensor in network.parameters())
    model = family(native, sockets)
    with native.running(model):
        model.load_weights()
        assert {name: tensor.data_ptr() for name, tensor in network.named_parameters()} == before
        assert not any(tensor.is_inference() for tensor in [*network.parameters(), *network.buffers()])


def test_a_resumed_run_is_bit_equal(native, build, tmp_path):
    from rlr_core.training.trainer import train

    class Stop(Exception):
        pass

    def run(out, until=None, resume=False):
        def stop(event):
            if event.kind == "update" and event.data["step"] == until:
                raise Stop

        model = family(native, build("flux"))
        with native.running(model):
            return train(model, Redness(), config(out, save_every=1), on_event=stop, resume=resume)

    whole = run(tmp_path / "whole").lora.adapter.state_dict
    files = [tmp_path / name / "run/lora.safetensors" for name in ("whole", "parts")]
    del whole
    with pytest.raises(Stop):
        run(tmp_path / "parts", until=2)
    run(tmp_path / "parts", resume=True)
    from safetensors.torch import load_file

    first, second = map(load_file, files)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_cancel_comes_between_evaluations(native, build, tmp_path):
    """The engine asks before every evaluation; what it raises ends the run there."""
    model = family(native, build("sd15"))

    class Cancel(BaseException):
        pass

    asked = []

    def check():
        asked.append(1)
        if len(asked) == 5:
            raise Cancel

    from rlr_core.training.trainer import train

    with pytest.raises(Cancel), native.running(model):
        train(model, Redness(), config(tmp_path), check=check)
    assert len(asked) == 5


def test_embedded_guidance_goes_into_the_network(native, build):
    """A guidance-distilled model is told the scale and evaluated once a step."""
    from rlr_core.diffusion.rollout import rollout

    sockets = build("flux")
    assert family(native, sockets, guidance_kind=None).guidance_kind == "embedded"
    assert family(native, build("sdxl"), guidance_kind=None).guidance_kind == "cfg"
    model = family(native, sockets, guidance_kind="embedded")
    with native.running(model):
        outputs = []
        for guidance in (2.0, 6.0):
            chain, conditioning = chain_of(model, guidance=guidance)
            outputs.append(rollout(chain, noise_of(model), conditioning).final)
            assert chain.evaluations.forward == 3 * chain.T
    assert not torch.equal(*outputs)
