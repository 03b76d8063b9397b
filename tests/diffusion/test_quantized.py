"""Frozen weights in 4 and 8 bits, on the CPU, where bitsandbytes computes what it does on a GPU."""

from __future__ import annotations

import importlib

import pytest
import torch
from adapters import fill
from pipeline_runs import chain_of, score
from tiny_pipelines import write_pipeline
from torch import nn

from rlr_core.diffusion.models import loading
from rlr_core.diffusion.models.loading import load_model
from rlr_core.lora import apply_lora, attach

pytest.importorskip("bitsandbytes")

BITS = ("4bit", "8bit")
FAMILIES = ("stable-diffusion-3", "flux", "wan")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Where diffusers and `load_model` ask for a GPU, which bitsandbytes does not."""
    quantizers = importlib.import_module("diffusers.quantizers.bitsandbytes.bnb_quantizer")
    for kind in (quantizers.BnB4BitDiffusersQuantizer, quantizers.BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(kind, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(kind, "update_device_map", lambda self, device_map: {"": "cpu"})
    monkeypatch.setattr(loading, "check_quantization", lambda device: None)
    # where it is True, sampling packs weights anew, for processors alone and with coarser scales
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_pipeline(request.param, tmp_path_factory.mktemp(request.param))


def dequantized(module):
    """The numbers that a layer of few bits stands for."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return module.weight.data.float() * module.weight.SCB[:, None] / 127


def in_full(folder, model):
    """The same model, its quantized layers replaced by plain ones with the numbers they stand for."""
    import bitsandbytes as bnb

    full = load_model(folder, device="cpu")
    layers = dict(full.transformer.named_modules())
    count = 0
    for name, module in model.transformer.named_modules():
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            layers[name].weight.data.copy_(dequantized(module))
            count += 1
    assert count > 0.9 * sum(isinstance(layer, nn.Linear) for layer in layers.values())
    return full


@pytest.mark.parametrize("bits", BITS)
def test_output_and_gradients_are_those_of_the_numbers_that_the_bits_stand_for(folder, bits):
    model = load_model(folder, device="cpu", dtype=bits)
    both = []
    for one in (in_full(folder, model), model):
        adapter = fill(attach(one, rank=2, targets="all"), std=0.1)
        chain, conditioning, noise = chain_of(one)
        x = noise.initial().requires_grad_()
        mean = chain.mean(x, 2, conditioning)
        gradients = torch.autograd.grad(
            score(one, mean).sum(), [x, *adapter.parameters()], allow_unused=True, materialize_grads=True
        )
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        both.append([mean.detach(), gradients[0], torch.cat([g.flatten() for g in gradients[1:]])])
    for exact, found in zip(*both, strict=True):
        error = float((found - exact).norm() / exact.norm())
        print(f"{model.family}, {bits}: {error:.1e}")
        assert error < (1e-5 if bits == "4bit" else 0.05)  # 8 bits round what comes in as well


@pytest.mark.parametrize("bits", BITS)
def test_a_lora_from_few_bits_is_one_for_the_full_model(folder, bits, tmp_path):
    model = load_model(folder, device="cpu", dtype=bits)
    adapter = fill(attach(model, rank=4, alpha=10), std=0.1)
    file = adapter.save(tmp_path / "lora.safetensors")
    full = load_model(folder, device="cpu")
    again = apply_lora(full, file).modules()
    modules = adapter.modules()
    assert again.keys() == modules.keys()
    for name, module in modules.items():
        change = module.alpha / module.rank * module.up @ module.down
        torch.testing.assert_close(
            again[name].alpha / again[name].rank * again[name].up @ again[name].down, change
        )
