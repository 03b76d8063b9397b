"""VQAScore equals transformers' CLIP and T5 put together as in the release."""

import pytest
import torch
from reference import rewards_formulas as reference
from reference.rewards_tiny import flan_t5, hugging_face_clip, pictures, save, t5_tokenizer

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward

PROMPTS = ["a photo of a cat", "red"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _projector(width=32):
    generator = torch.Generator().manual_seed(5)
    shapes = {"0.weight": (width, 128), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """CLIP-FlanT5 as its Hugging Face folder: T5, projector and image tower in one file."""
    tensors = {k: v for k, v in flan_t5().state_dict().items() if "embed_tokens" not in k}
    tensors.update({f"mm_projector.{k}": v for k, v in _projector().items()})
    vision = hugging_face_clip("quick_gelu").vision_model.state_dict()
    tensors.update({f"vision_tower.vision_tower.vision_model.{k}": v for k, v in vision.items()})
    save(tensors, tmp_path / "clip-flant5-xl" / "model.safetensors")
    t5_tokenizer(tmp_path / "clip-flant5-xl" / "tokenizer.json")
    return tmp_path / "clip-flant5-xl"


def _load(folder, **options):
    return load_reward("vqascore", weights=folder, **options)  # the tokenizer is beside the weights


def _expected(folder, image, prompt):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(text):
        return [*tokenizer.encode(text).ids, 1]

    question = (
        f'{SYSTEM} USER: <image>\nDoes this figure show "{prompt}"? Please answer yes or no. ASSISTANT: '
    )
    before, after = question.split("<image>")
    pixels = reference.llava_preprocess(image, 32)[None]
    vision = hugging_face_clip("quick_gelu").vision_model
    return reference.vqascore(flan_t5(), vision, _projector(), pixels, ids(before), ids(after), ids("Yes"))


@pytest.mark.parametrize("size", [(32, 32), (30, 50), (64, 41)])
def test_the_score_equals_the_release(folder, size):
    images = (pictures(2, *size) * 255).round() / 255
    expected = torch.stack([_expected(folder, image, p) for image, p in zip(images, PROMPTS, strict=True)])
    actual = _load(folder)(images, PROMPTS)
    assert ((expected > 0) & (expected < 1)).all()
    exact = size == (32, 32)  # otherwise PIL's rounding to 8 bits is left over
    assert torch.allclose(actual, expected, rtol=1e-5 if exact else 2e-2)


def test_a_score_does_not_depend_on_the_length_of_another_prompt(folder):
    reward, images = _load(folder), pictures(2)
    together = reward(images, ["cat", "a red cat, a red cat and a red photo of a red cat"])
    assert torch.allclose(together[:1], reward(images[:1], ["cat"]), rtol=1e-5)


def test_the_image_tower_may_come_from_a_clip_file_of_its_own(folder):
    images, tensors = pictures(2), {}
    within = _load(folder)(images, PROMPTS)
    from safetensors.torch import load_file

    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "vision" not in k}
    save(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="clip-vit-large-patch14-336.*vision="):
        _load(folder)
    clip = save(hugging_face_clip("quick_gelu"), folder / "clip336.safetensors")
    assert torch.allclose(_load(folder, vision=clip)(images, PROMPTS), within, rtol=1e-6)


def test_the_gradient_reaches_the_pixels_and_is_the_scores_derivative(folder):
    reward = _load(folder)
    pixels = (0.25 + 0.5 * pictures(1)).requires_grad_(True)
    reward(pixels, PROMPTS[:1]).log().sum().backward()
    direction = pixels.grad / pixels.grad.norm()
    step = 0.05
    with torch.no_grad():
        high, low = (reward(pixels + s * direction, PROMPTS[:1]).log().item() for s in (step, -step))
    assert (high - low) / (2 * step) == pytest.approx(pixels.grad.norm().item(), rel=0.05)


def test_bfloat16_keeps_the_gradients_direction_and_checkpointing_changes_nothing(folder):
    slopes = []
    for options in ({}, {"checkpointing": True}, {"dtype": "bfloat16"}):
        pixels = pictures(2).requires_grad_(True)
        _load(folder, **options)(pixels, PROMPTS).sum().backward()
        slopes.append(pixels.grad.flatten())
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-4, atol=1e-4 * slopes[0].abs().max())
    assert torch.nn.functional.cosine_similarity(slopes[0], slopes[2], dim=0) > 0.99


def test_float16_is_refused_because_t5_overflows_in_it(folder):
    with pytest.raises(UserError, match="overflows in float16; use dtype bfloat16"):
        _load(folder, dtype="float16")


def test_a_t5_alone_is_not_clip_flant5(folder):
    save(dict(flan_t5().state_dict()), folder / "model.safetensors")
    with pytest.raises(UserError, match=r"is not CLIP-FlanT5|clip-vit-large-patch14-336"):
        _load(folder)


def test_a_broken_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not T5's tokenizer"):
        _load(folder)
