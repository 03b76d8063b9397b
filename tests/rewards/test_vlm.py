"""The reward `vlm` equals transformers' own processor and model, with a gradient down to the pixels."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference.rewards_tiny import pictures
from reference.tiny_vlm import write_tiny_vlm

from rlr_core.common.images import to_pil
from rlr_core.common.prompt_text import PromptText
from rlr_core.errors import UserError
from rlr_core.rewards import load_reward

PROMPTS = ["a red cat", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        return write_tiny_vlm(tmp_path_factory.mktemp("models") / "Qwen3-VL-4B-Instruct")
    except ImportError as error:
        pytest.skip(f"these libraries are too old for it: {error}")


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of its own to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "vlm"))


def rounded(*shape, seed=0):
    return (pictures(*shape, seed=seed) * 255).round() / 255


def expected(folder, image, question):
    """log p(yes) - log p(no) by transformers alone."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[to_pil(image)], return_tensors="pt")
    with torch.no_grad():
        p = model(**inputs).logits[0, -1].softmax(-1)
    ids = processor.tokenizer.convert_tokens_to_ids(["Yes", "yes", "No", "no"])
    return ((p[ids[0]] + p[ids[1]]) / (p[ids[2]] + p[ids[3]])).log()


@pytest.mark.parametrize("size", [(256, 320), (512, 288), (100, 140)])
def test_the_logit_equals_transformers(folder, size):
    images = rounded(2, *size)
    reward = load_reward("vlm", model=folder)
    questions = [f'Does this picture show "{p}"? Answer with yes or no.' for p in PROMPTS]
    wanted = torch.stack([expected(folder, i, q) for i, q in zip(images, questions, strict=True)])
    found = reward(images, PROMPTS)
    resized = size == (100, 140)  # the processor rounds what it has enlarged to 8 bits
    assert torch.allclose(found, wanted, atol=3e-3 if resized else 1e-5)
    assert (found[0] - found[1]).abs() > 0.05  # far above either tolerance: picture and prompt count


def test_the_patches_are_the_processors(folder):
    model = load_reward("vlm", model=folder).model
    for size, tolerance in (((256, 320), 1e-6), ((300, 500), 0.012), ((200, 150), 0.012)):
        image = rounded(1, *size)[0]
        inputs = model.inputs(image, "Is it a cat?")
        ours = model._patches(image, inputs["image_grid_thw"])
        assert ours.shape == inputs["pixel_values"].shape
        assert (ours - inputs["pixel_values"]).abs().max() < tolerance  # 1.5/255 of a range of 2, resized


def test_the_gradient_reaches_the_pixels_and_is_the_scores_derivative(folder):
    reward = load_reward("vlm", model=folder)
    assert reward.differentiable
    pixels = (0.25 + 0.5 * pictures(1, 256, 256)).requires_grad_(True)
    reward(pixels, PROMPTS[:1]).sum().backward()
    assert torch.isfinite(pixels.grad).all()
    direction, step = pixels.grad / pixels.grad.norm(), 0.03
    with torch.no_grad():
        high, low = (reward(pixels + s * direction, PROMPTS[:1]).item() for s in (step, -step))
    assert (high - low) / (2 * step) == pytest.approx(pixels.grad.norm().item(), rel=0.05)


def test_checkpointing_computes_layers_twice_and_changes_neither_score_nor_gradient(folder):
    found = []
    for checkpointing in (False, True):
        reward, calls = load_reward("vlm", model=folder, checkpointing=checkpointing), []
        model = reward.model.model.model
        for layer in (model.language_model.layers[1].mlp, model.visual.blocks[1].mlp):
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        pixels = pictures(1, 256, 256).requires_grad_(True)
        score = reward(pixels, PROMPTS[:1])
        score.sum().backward()
        found.append((len(calls), score.item(), pixels.grad))
    (once, score, gradient), (twice, same_score, same_gradient) = found
    assert (once, twice) == (2, 4)
    assert same_score == pytest.approx(score, abs=1e-6)
    assert torch.allclose(gradient, same_gradient, atol=1e-5 * gradient.abs().max().item())


def test_questions_come_from_the_metadata_and_no_may_be_the_right_answer(folder):
    reward = load_reward("vlm", model=folder)
    image = rounded(1, 256, 256)
    alone = [
        reward(image, [PromptText("x", {"questions": [q]})]).item()
        for q in ("Is it a cat?", {"question": "Is it a dog?", "answer": "no"})
    ]
    both = PromptText("x", {"questions": ["Is it a cat?", {"question": "Is it a dog?", "answer": False}]})
    assert reward(image, [both]).item() == pytest.approx(sum(alone) / 2, abs=1e-5)
    no = PromptText("x", {"questions": {"question": "Is it a cat?", "answer": "no"}})
    assert reward(image, [no]).item() == pytest.approx(-alone[0], abs=1e-5)
    assert load_reward("vlm", model=folder, question="Is it red?").needs_prompt is False
    for odd in ([], 3, [{"answer": "yes"}], [{"question": "How many?", "answer": "3"}]):
        with pytest.raises(UserError, match="metadata `questions` of prompt 'x' must be a list of texts"):
            reward.prepare([PromptText("x", {"questions": odd})])


def test_as_a_probability_the_score_is_the_sigmoid_of_the_logit(folder):
    image = rounded(1, 256, 256)
    logit = load_reward("vlm", model=folder)(image, ["a cat"])
    probability = load_reward("vlm", model=folder, probability=True)(image, ["a cat"])
    assert torch.allclose(probability, logit.sigmoid())


def test_any_object_that_answers_may_be_the_model():
    class Brightness:
        differentiable = True

        def yes_no_logits(self, images, questions):
            return images.mean((1, 2, 3)) * torch.tensor([len(q) for q in questions])

    reward = load_reward("vlm", model=Brightness(), question="{prompt}")
    images = rounded(2, 32, 32)
    assert torch.allclose(reward(images, ["ab", "abc"]), images.mean((1, 2, 3)) * torch.tensor([2.0, 3.0]))


def test_a_processor_that_cuts_pictures_otherwise_makes_a_black_box(copy):
    config = json.loads((copy / "processor_config.json").read_text())
    config["image_processor"] |= {"do_normalize": False}
    (copy / "processor_config.json").write_text(json.dumps(config))
    reward = load_reward("vlm", model=copy)
    assert not reward.differentiable
    assert torch.isfinite(reward(rounded(1, 256, 256), ["a cat"])).all()


def test_a_folder_that_needs_code_or_has_gaps_is_refused_in_a_sentence(copy, tmp_path):
    config = copy / "config.json"
    good = config.read_text()
    for spoiled, message in (
        (json.loads(good) | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "cannot be"),
        ({"model_type": "bert"}, "cannot be loaded as a vision-language model"),
        (
            json.loads(good) | {"text_config": json.loads(good)["text_config"] | {"num_hidden_layers": 4}},
            "lacks",
        ),
    ):
        config.write_text(json.dumps(spoiled))
        with pytest.raises(UserError, match=message) as refused:
            load_reward("vlm", model=copy)
        assert "\n" not in str(refused.value)
    config.write_text(good)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template for pictures"):
        load_reward("vlm", model=copy)
    with pytest.raises(UserError, match=r"nowhere is not there \(it should be a vision-language model"):
        load_reward("vlm", model=tmp_path / "nowhere")


def test_a_kernel_in_the_config_is_not_fetched_and_no_socket_is_opened(copy):
    config = json.loads((copy / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["attn_implementation"] = part["_attn_implementation"] = "kernels-community/flash-attn"
    (copy / "config.json").write_text(json.dumps(config))
    code = f"""if True:
        import socket, torch
        def refuse(*_, **__): raise AssertionError("a socket was opened")
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        from rlr_core.rewards import load_reward
        print(load_reward("vlm", model={str(copy)!r})(torch.rand(1, 3, 64, 64), ["a cat"]).shape)
    """
    root = str(Path(__file__).parents[2])
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HOME": str(copy)},
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == "torch.Size([1])", out.stderr
