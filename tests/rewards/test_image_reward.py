"""ImageReward equals its formula in plain torch, on the same weights, pictures and prompts."""

import pytest
import torch
from marks import opens_pickles
from reference import rewards_formulas as reference
from reference.rewards_tiny import PROMPTS, bert_vocabulary, image_reward_tensors, pictures

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward

pytestmark = opens_pickles


@pytest.fixture
def files(tmp_path):
    torch.save(image_reward_tensors(), tmp_path / "ImageReward.pt")
    vocabulary = bert_vocabulary(tmp_path / "bert-base-uncased-vocab.txt")
    return {"weights": tmp_path / "ImageReward.pt", "vocabulary": vocabulary}


def _tokens(prompts):
    """[CLS] words [SEP], padded to 35, written by hand for the tiny vocabulary."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ",",
        "a",
        "photo",
        "of",
        "cat",
        "two",
        "red",
        "cube",
    ]
    words += ["##s", "on", "blue", "table", "oil", "painting"]
    pieces = {"cubes": ["cube", "##s"]}
    rows = []
    for prompt in prompts:
        split = prompt.replace(",", " ,").split()
        known = [piece for word in split for piece in pieces.get(word, [word])]
        ids = [words.index(piece) for piece in ["[CLS]", *known, "[SEP]"]]
        rows.append(ids + [0] * (35 - len(ids)))
    return torch.tensor(rows)


def test_the_score_equals_the_formula(files):
    reward, images = load_reward("image_reward", **files), pictures(2, 32, 32)
    tokens = _tokens(PROMPTS)
    expected = reference.image_reward(image_reward_tensors(), images, tokens, tokens != 0)
    actual = reward(images, PROMPTS)
    assert (expected[0] - expected[1]).abs() > 0.01
    assert torch.allclose(actual, expected, atol=2e-5)


def test_the_score_depends_on_picture_and_prompt(files):
    reward, images = load_reward("image_reward", **files), pictures(2, 32, 32)
    same_prompt = reward(images, [PROMPTS[0]] * 2)
    same_picture = reward(images[:1].expand(2, -1, -1, -1), PROMPTS)
    assert (same_prompt[0] - same_prompt[1]).abs() > 1e-3
    assert (same_picture[0] - same_picture[1]).abs() > 1e-3


def test_prompts_beyond_35_tokens_are_cut_as_in_the_release(files):
    reward, images = load_reward("image_reward", **files), pictures(1, 32, 32)
    long = " ".join(["cat"] * 33)
    assert torch.equal(reward(images, [long]), reward(images, [long + " red table"]))
    assert not torch.equal(reward(images, [long]), reward(images, [long[:-4] + " red"]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_the_gradients_direction(files, dtype):
    slopes = []
    for precision in ("float32", dtype):
        pixels = pictures(2).requires_grad_(True)
        load_reward("image_reward", dtype=precision, **files)(pixels, PROMPTS).sum().backward()
        assert torch.isfinite(pixels.grad).all()
        slopes.append(pixels.grad.flatten())
    assert torch.nn.functional.cosine_similarity(*slopes, dim=0) > 0.99


def test_checkpointing_changes_nothing(files):
    slopes = []
    for checkpointing in (False, True):
        pixels = pictures(2).requires_grad_(True)
        load_reward("image_reward", checkpointing=checkpointing, **files)(pixels, PROMPTS).sum().backward()
        slopes.append(pixels.grad)
    assert slopes[0].abs().max() > 0
    assert torch.allclose(*slopes, atol=1e-7)


def test_its_timm_tower_lends_features_to_a_distance(files):
    reward, (target, other) = load_reward("image_reward", **files), pictures(2, 32, 32)
    distance = load_reward("target_picture", target=target, features=reward)
    pixels = torch.stack([target, 0.9 * target, other]).requires_grad_(True)
    same, shade, away = distance(pixels, [""] * 3)
    assert same.item() == pytest.approx(0, abs=1e-9)
    assert away < shade < 0
    away.backward()
    assert torch.isfinite(pixels.grad).all() and pixels.grad[2].abs().max() > 0


def test_the_vocabulary_beside_the_weights_is_found(files):
    assert load_reward("image_reward", weights=files["weights"])(pictures(1), ["a cat"]).shape == (1,)


def test_surplus_parts_of_blip_are_ignored_and_missing_ones_named(files):
    tensors = {**image_reward_tensors(), "blip.text_proj.weight": torch.zeros(3, 3)}
    torch.save(tensors, files["weights"])
    load_reward("image_reward", **files)
    del tensors["blip.text_encoder.encoder.layer.1.crossattention.self.value.bias"]
    torch.save(tensors, files["weights"])
    with pytest.raises(UserError, match=r"lacks 'encoder\.layer\.1\.crossattention\.self\.value\.bias'"):
        load_reward("image_reward", **files)


def test_a_vocabulary_that_does_not_belong_to_the_weights_is_refused(files):
    lines = files["vocabulary"].read_text().splitlines()
    files["vocabulary"].write_text("\n".join(lines[:100]) + "\n")
    with pytest.raises(UserError, match="102 words.*200"):
        load_reward("image_reward", **files)
