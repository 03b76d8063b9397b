"""A CLIP that is a Qwen3-VL answers questions about pictures as transformers' Qwen3-VL does."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1}
VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 3, "deepstack_visual_indexes": [0, 1]}
PICTURE, END = "<|image_pad|>", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def clip(pack):
    """ComfyUI's Qwen3-VL 4B with few and narrow layers, random."""
    qwen3vl = pytest.importorskip("comfy.text_encoders.qwen3vl", reason="this ComfyUI has no Qwen3-VL")
    import comfy.sd

    sizes = {"qwen3vl_4b": VISION}
    target = SimpleNamespace(params={}, clip=qwen3vl.te(model_type="qwen3vl_4b"))
    target.tokenizer = qwen3vl.tokenizer(model_type="qwen3vl_4b")
    options = {"qwen3vl_4b_model_config": TEXT, "dtype": torch.float32}
    with contextlib.ExitStack() as patches, torch.inference_mode():
        patches.enter_context(mock.patch.dict(qwen3vl.QWEN3VL_VISION, sizes))
        common = {"num_heads": 2, "num_position_embeddings": 64}
        patches.enter_context(mock.patch.dict(qwen3vl.QWEN3VL_VISION_COMMON, common))
        clip = comfy.sd.CLIP(target, model_options=options)
        generator = torch.Generator().manual_seed(0)
        for name, weight in clip.cond_stage_model.named_parameters():
            spread = 0.15 if "visual" in name else 0.08
            centered = spread * torch.randn(weight.shape, generator=generator)
            weight.copy_(centered if weight.ndim > 1 else 1 + centered if "norm" in name else centered)
    return clip


def in_transformers(clip):
    """The same weights as transformers' model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5000000.0}
    text = {"vocab_size": 151936, "head_dim": 128, "rope_parameters": rope, "tie_word_embeddings": True}
    vision = {"num_heads": 2, "num_position_embeddings": 64, "out_hidden_size": 64, "patch_size": 16}
    config = Qwen3VLConfig(text_config=TEXT | text, vision_config=VISION | vision, tie_word_embeddings=True)
    model = Qwen3VLForConditionalGeneration(config).eval()
    tensors = {}
    for name, weight in clip.cond_stage_model.qwen3vl_4b.transformer.state_dict().items():
        name = (
            f"model.{name}"
            if name.startswith("visual.")
            else name.replace("model.", "model.language_model.", 1)
        )
        tensors[name] = weight.clone()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()
    return model


def by_transformers(clip, model, image, question):
    """log p(yes) - log p(no) with the tokens that ComfyUI's tokenizer gives for the whole text."""
    from transformers import Qwen2VLImageProcessor

    from rlr_core.common.images import to_pil

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pixels = Qwen2VLImageProcessor(patch_size=16, **half)(to_pil(image), return_tensors="pt")
    count = int(pixels["image_grid_thw"].prod()) // 4
    tokenizer = clip.tokenizer.qwen3vl_4b.tokenizer
    text = f"<|im_start|>user\n<|vision_start|>{PICTURE * count}<|vision_end|>{question}{END}"
    ids = torch.tensor([tokenizer.encode(text)])
    kinds = (ids == tokenizer.convert_tokens_to_ids(PICTURE)).int()
    with torch.no_grad():
        p = model(input_ids=ids, mm_token_type_ids=kinds, **pixels).logits[0, -1].softmax(-1)
    yes, no = ([tokenizer.encode(f"{space}{word}")[0] for space in ("", " ") for word in words]
               for words in (("Yes", "yes"), ("No", "no")))  # fmt: skip
    return (p[yes].sum() / p[no].sum()).log().item()


def test_it_answers_as_transformers_does(clip, part):
    images = (torch.rand(2, 3, 256, 320, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    questions = ["Is this a cat?", "Does this picture show a red dog? Answer with yes or no."]
    model = in_transformers(clip)
    wanted = [by_transformers(clip, model, i, q) for i, q in zip(images, questions, strict=True)]
    found = part("answers").ClipAnswerer(clip).yes_no_logits(images, questions).tolist()
    assert found == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted[0] - wanted[1]) > 0.02


def test_the_reward_vlm_takes_it(clip, part):
    reward = load_reward("vlm", model=part("answers").ClipAnswerer(clip), question="Is it {prompt}?")
    assert not reward.differentiable
    images = torch.rand(2, 3, 256, 256, requires_grad=True)
    prompts = ["a cat", "a dog"]
    scores = reward(images, prompts)
    assert torch.isfinite(scores).all() and not scores.requires_grad and not scores.is_inference()
    apart = torch.cat([reward(image[None], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
    assert torch.allclose(scores, apart, atol=1e-6)


def test_a_clip_that_sees_no_pictures_is_refused(part):
    with pytest.raises(UserError, match="sees no pictures.*Qwen3-VL"):
        part("answers").ClipAnswerer(
            SimpleNamespace(cond_stage_model=SimpleNamespace(clip="clip_l"), tokenizer=None)
        )
