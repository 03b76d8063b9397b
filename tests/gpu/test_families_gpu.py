"""Families on a GPU: half precision everywhere, text encoders and denoiser taking turns, fewer bits."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from adapters import fill
from pipeline_runs import chain_of, our_pictures, unrolled_gradient
from tiny_pipelines import BUILDERS, write_pipeline

from rlr_core.diffusion.models.loading import load_model
from rlr_core.lora import attach

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", BUILDERS)
def test_half_precision_gives_the_pictures_and_gradients_of_the_cpu(family, tmp_path):
    folder = write_pipeline(family, tmp_path)
    pictures, gradients = [], []
    for device, dtype in (("cpu", "fp32"), ("cuda", "bf16")):
        model = load_model(folder, device=device, dtype=dtype)
        adapter = fill(attach(model, rank=2, seed=1))
        model.gradient_checkpointing(device == "cuda")
        pictures.append(our_pictures(model, 2.0).cpu())
        chain, conditioning, noise = chain_of(model, guidance=2.0, steps=2)
        found = unrolled_gradient(chain, adapter.parameters(), conditioning, noise)
        gradients.append(torch.cat([gradient.flatten().cpu() for gradient in found]))
    assert (pictures[0] - pictures[1]).abs().mean() < 0.02
    assert torch.cosine_similarity(*gradients, 0) > 0.95


def test_the_transformer_leaves_the_gpu_while_text_encoders_need_its_room(tmp_path, monkeypatch):
    model = load_model(write_pipeline("flux", tmp_path), device="cuda", dtype="bf16")
    before = our_pictures(model)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2**40))
    rows = model.encode_prompts(["a cat", "a dog"])
    assert model.transformer.device.type == model.vae.device.type == "cpu"
    assert all(tensor.device.type == "cuda" for tensor in rows.values())
    torch.testing.assert_close(our_pictures(model), before)
    assert model.transformer.device.type == "cuda"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("dtype", ["4bit", "8bit"])
def test_a_transformer_in_fewer_bits_trains(dtype, tmp_path):
    folder = write_pipeline("flux", tmp_path, attention_head_dim=64, axes_dims_rope=(16, 24, 24))
    exact, rough = (load_model(folder, device="cuda", dtype=each) for each in ("bf16", dtype))
    kinds = {type(module).__name__ for module in rough.transformer.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    assert (our_pictures(exact) - our_pictures(rough)).abs().mean() < 0.1
    adapter = fill(attach(rough, rank=2))
    chain, conditioning, noise = chain_of(rough, steps=2)
    found = unrolled_gradient(chain, adapter.parameters(), conditioning, noise)
    assert all(gradient.isfinite().all() for gradient in found)
    assert sum(float(gradient.abs().sum()) for gradient in found) > 0
