"""A LoRA that was trained for a part of the steps is sampled with in that part, by itself."""

from __future__ import annotations

import pytest
import torch
from tiny_flow import TinyFlow

from rlr_core.config import SamplerConfig
from rlr_core.config.prompts import read_prompts
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.evaluation.sampling import evaluate, sample
from rlr_core.lora import apply_lora, attach
from rlr_core.lora.formats import acts

SAMPLER = SamplerConfig(steps=4, guidance=1.0, eta=0.0)
PROMPTS, SEEDS = ["a cat", "a dog"], [3, 4]


def lora_file(folder, **metadata):
    """A LoRA that changes a lot."""
    model = TinyFlow()
    adapter = attach(model, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    path = folder / f"lora{len(list(folder.iterdir()))}.safetensors"
    adapter.save(path, metadata=metadata)
    return path


def pictures(path=None):
    model = TinyFlow()
    adapter = None if path is None else apply_lora(model, path)
    return sample(model, PROMPTS, SEEDS, SAMPLER, adapter=adapter)


def test_a_file_says_where_its_lora_acts(tmp_path):
    assert acts({}) == (0, 1)
    for odd in ("x", "nan", "7", "0"):
        assert acts({"rlr_start_percent": "0", "rlr_end_percent": odd}) == (0, 1)
    assert acts({"rlr_start_percent": "0", "rlr_end_percent": "0.75"}) == (0, 0.75)
    model = TinyFlow()
    assert apply_lora(model, lora_file(tmp_path, start_percent=0, end_percent=0.5)).end_percent == 0.5


def test_the_lora_acts_from_the_noise_to_there_and_the_base_model_does_the_rest(tmp_path):
    half, whole = lora_file(tmp_path, start_percent=0, end_percent=0.5), lora_file(tmp_path)
    model = TinyFlow()
    chain = Chain(model, model.schedule(SAMPLER))
    adapter = apply_lora(model, whole)
    book = PromptBook(model, read_prompts(PROMPTS), "", None)
    conditioning = book.conditioning([0, 1])
    noise = Noise(SEEDS, model.latent_shape(*model.default_size), model.device)
    with torch.no_grad():
        state = rollout(chain, noise, conditioning, stop=2, keep=False).final
        with adapter.disabled():
            final = rollout(chain, noise, conditioning, start=2, latents=state, keep=False).final
        by_hand = model.decode(final).clamp(0, 1)
    assert torch.allclose(pictures(half), by_hand, atol=1e-6)
    assert not torch.allclose(pictures(half), pictures(whole), atol=1e-3)
    assert not torch.allclose(pictures(half), pictures(), atol=1e-3)


@pytest.mark.parametrize(("end", "like_base"), [(0.1, True), (1.0, False)])
def test_evaluations_do_the_same(tmp_path, end, like_base):
    def redness(images, prompts):
        return images[:, 0].mean((1, 2))

    def measured(adapter=None, model=None):
        model = model or TinyFlow()
        return evaluate(model, {"r": redness}, PROMPTS, SAMPLER, samples=4, adapter=adapter).scores["r"]

    model = TinyFlow()
    found = measured(apply_lora(model, lora_file(tmp_path, start_percent=0, end_percent=end)), model)
    assert torch.equal(found, measured()) == like_base
