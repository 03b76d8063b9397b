"""The demo's weights are stored so that every allowed release of transformers reads all of them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlr_core.demo import model_path
from rlr_core.demo.build.__main__ import nest_text_encoder
from rlr_core.diffusion.models.loading import load_model

WEIGHTS = model_path() / "text_encoder" / "model.safetensors"


def test_text_encoder_is_stored_under_the_prefix_that_every_transformers_reads():
    names = load_file(WEIGHTS).keys()
    assert len(names) == 36
    assert all(name.startswith("text_model.") for name in names)


def test_transformers_itself_finds_every_weight_of_the_text_encoder():
    from transformers import CLIPTextModel

    module, report = CLIPTextModel.from_pretrained(WEIGHTS.parent, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    stored = {name.removeprefix("text_model."): tensor for name, tensor in load_file(WEIGHTS).items()}
    for name, weight in module.named_parameters():
        assert torch.equal(weight, stored[name.removeprefix("text_model.")].float()), name


def test_demo_computes_from_its_text_what_transformers_computes():
    from transformers import CLIPTextModel

    model = load_model("demo", device="cpu")
    prompts = ["a red circle above a blue square", ""]
    tokens = model.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(WEIGHTS.parent).eval()(tokens)[0]
    torch.testing.assert_close(model.encode_prompts(prompts)["prompt"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_build_stores_either_layout_under_the_prefix(tmp_path, prefix):
    tensors = {f"{prefix}encoder.x": torch.arange(6.0), f"{prefix}final_layer_norm.bias": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    nest_text_encoder(tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == {"text_model.encoder.x", "text_model.final_layer_norm.bias"}
    assert torch.equal(stored["text_model.encoder.x"], torch.arange(6.0))
