"""CLIP rewards equal the references on the same weights, pictures and prompts, in every file layout."""

import pytest
import torch
import torch.nn.functional as F
from marks import opens_pickles
from open_clip.tokenizer import SimpleTokenizer
from reference import rewards_formulas as reference
from reference.rewards_tiny import (
    EMBEDDING,
    PROMPTS,
    aesthetic_head,
    hugging_face_clip,
    open_clip_model,
    pictures,
    save,
    write_config,
)

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.towers.clip import CLIP_L, ImageTower, PromptFeatures
from rlr_core.rewards.towers.clip_layout import read_clip
from rlr_core.rewards.towers.preprocess import normalize

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def square():
    return pictures(2, 32, 32)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_towers_equal_open_clips_own(tmp_path, square, quick_gelu):
    model = open_clip_model(quick_gelu)
    path = save(model, tmp_path / "clip.safetensors")
    tower = ImageTower(read_clip(path, CLIP_L, quick_gelu), CLIP_L)
    prompts = PromptFeatures(path, CLIP_L, quick_gelu)
    assert torch.allclose(tower.features(square), model.encode_image(normalize(square)), atol=TOLERANCE)
    expected = model.encode_text(SimpleTokenizer()(PROMPTS), normalize=True)
    assert torch.allclose(prompts.embed(PROMPTS, "cpu"), expected, atol=TOLERANCE)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("layout", ["safetensors folder", pytest.param("torch file", marks=opens_pickles)])
def test_towers_equal_transformers(tmp_path, square, activation, layout):
    model = hugging_face_clip(activation)
    if layout == "torch file":
        path = tmp_path / "pytorch_model.bin"
        torch.save(model.state_dict(), path)
        write_config(tmp_path, activation)
    else:
        model.save_pretrained(tmp_path)
        write_config(tmp_path, activation)
        path = tmp_path / "model.safetensors"
    clip = read_clip(path, CLIP_L)
    assert clip.quick_gelu == (activation == "quick_gelu")
    tokens = SimpleTokenizer()(PROMPTS)
    seen, read = reference.hugging_face_embeddings(model, square, tokens)
    assert torch.allclose(ImageTower(clip, CLIP_L).features(square), seen, atol=TOLERANCE)
    assert torch.allclose(
        PromptFeatures(path, CLIP_L).embed(PROMPTS, "cpu"), F.normalize(read, dim=-1), atol=TOLERANCE
    )


@pytest.mark.parametrize("layout", ["hugging face", "bare hugging face", "open_clip"])
def test_a_comfyui_clip_vision_file_serves_as_the_image_tower(tmp_path, square, layout):
    if layout == "open_clip":
        model = open_clip_model(True)
        path = save(
            {k: v for k, v in model.state_dict().items() if k[:7] == "visual."}, tmp_path / "v.safetensors"
        )
        expected = model.encode_image(normalize(square))
    else:
        model = hugging_face_clip("quick_gelu")
        tensors = {
            k: v for k, v in model.state_dict().items() if k.startswith(("vision_model.", "visual_proj"))
        }
        if layout == "bare hugging face":
            tensors = {k.removeprefix("vision_model."): v for k, v in tensors.items()}
        path = save(tensors, tmp_path / "clip_vision.safetensors")
        expected = reference.hugging_face_embeddings(model, square, SimpleTokenizer()(PROMPTS))[0]
    tower = ImageTower(read_clip(path, CLIP_L, quick_gelu=True), CLIP_L)
    assert torch.allclose(tower.features(square), expected, atol=TOLERANCE)


def _reference_scores(preprocess, model, images):
    pixels = torch.stack([preprocess(image, 32) for image in images])
    return reference.cosine(*reference.hugging_face_embeddings(model, pixels, SimpleTokenizer()(PROMPTS)))


@pytest.mark.parametrize("height, width", [(48, 48), (40, 57), (90, 33)])
@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hpsv2"])
def test_scores_equal_the_published_formula(tmp_path, name, height, width):
    """The whole way: files, preprocessing, towers, formula. What is left is PIL's rounding."""
    model = hugging_face_clip("quick_gelu" if name == "clip_score" else "gelu")
    path = save(model, tmp_path / "clip.safetensors")
    images = (pictures(2, height, width) * 255).round() / 255
    preprocess, scale = {
        "clip_score": (reference.clip_preprocess, 2.5),
        "pickscore": (reference.hugging_face_preprocess, model.logit_scale.exp()),
        "hpsv2": (reference.hps_preprocess, 1.0),
    }[name]
    expected = _reference_scores(preprocess, model, images)
    actual = load_reward(name, weights=path)(images, PROMPTS) / scale
    assert expected.std() > 0.005  # the pictures do differ in score
    assert (actual - expected).abs().max() < 2e-3


@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hpsv2"])
def test_scores_are_exact_when_nothing_is_resized(tmp_path, square, name):
    model = hugging_face_clip("quick_gelu" if name == "clip_score" else "gelu")
    path = save(model, tmp_path / "clip.safetensors")
    cosine = reference.cosine(*reference.hugging_face_embeddings(model, square, SimpleTokenizer()(PROMPTS)))
    scale = {"clip_score": 2.5, "pickscore": model.logit_scale.exp().item(), "hpsv2": 1.0}[name]
    assert torch.allclose(
        load_reward(name, weights=path)(square, PROMPTS), scale * cosine, rtol=1e-5, atol=1e-6
    )


@opens_pickles
def test_aesthetic_equals_the_published_formula(tmp_path, square):
    model, head = hugging_face_clip("quick_gelu"), aesthetic_head()
    clip = save(model, tmp_path / "clip.safetensors")
    torch.save(head, tmp_path / "head.pth")
    reward = load_reward("aesthetic", weights=tmp_path / "head.pth", clip=clip)
    seen, _ = reference.hugging_face_embeddings(model, square, SimpleTokenizer()(PROMPTS))
    assert torch.allclose(reward(square, ["", ""]).double(), reference.aesthetic(seen, head), atol=1e-5)


@pytest.mark.parametrize("dtype, within", [("bfloat16", 0.02), ("float16", 0.002)])
def test_half_precision_keeps_the_score_and_the_gradients_direction(tmp_path, dtype, within):
    path = save(open_clip_model(), tmp_path / "clip.safetensors")
    images = pictures(2)

    def gradient(precision):
        pixels = images.clone().requires_grad_(True)
        scores = load_reward("hpsv2", weights=path, dtype=precision)(pixels, PROMPTS)
        assert scores.dtype == torch.float32
        scores.sum().backward()
        return scores.detach(), pixels.grad

    (exact, slope), (rough, rough_slope) = gradient("float32"), gradient(dtype)
    assert (exact - rough).abs().max() < within
    assert torch.isfinite(rough_slope).all()
    assert F.cosine_similarity(slope.flatten(), rough_slope.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_a_float16_gradient_survives_any_weight_of_the_reward(tmp_path, scale):
    reward = load_reward(
        "hpsv2", weights=save(open_clip_model(), tmp_path / "clip.safetensors"), dtype="float16"
    )
    slopes = []
    for weight in (1.0, scale):
        pixels = pictures(2).requires_grad_(True)
        (weight * reward(pixels, PROMPTS)).sum().backward()
        slopes.append(pixels.grad / weight)
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-3, atol=1e-3 * slopes[0].abs().max())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scoring_picture_by_picture_is_exact(tmp_path, dtype):
    path = save(open_clip_model(), tmp_path / "clip.safetensors")
    reward = load_reward("hpsv2", weights=path, dtype=dtype)
    images, prompts = pictures(4), [*PROMPTS, "a dog", "snow"]
    together, apart = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
    scores = reward(together, prompts)
    scores.sum().backward()
    for index, prompt in enumerate(prompts):
        score = reward(apart[index : index + 1], [prompt])
        score.sum().backward()
        tolerance = 1e-6 if dtype == "float32" else 1e-3
        assert torch.allclose(score[0], scores[index], atol=tolerance)
    scale = together.grad.abs().max()
    assert torch.allclose(
        together.grad, apart.grad, atol=float(scale) * (1e-5 if dtype == "float32" else 2e-2)
    )


def test_the_gradient_is_the_scores_derivative(tmp_path):
    reward = load_reward("hpsv2", weights=save(open_clip_model(), tmp_path / "clip.safetensors"))
    pixels = (0.25 + 0.5 * pictures(1)).requires_grad_(True)
    reward(pixels, PROMPTS[:1]).sum().backward()
    direction = pixels.grad / pixels.grad.norm()
    step = 0.02
    with torch.no_grad():
        rise = reward(pixels + step * direction, PROMPTS[:1]) - reward(pixels - step * direction, PROMPTS[:1])
    assert rise.item() / (2 * step) == pytest.approx(pixels.grad.norm().item(), rel=0.02)


def test_checkpointing_changes_nothing_but_what_is_kept(tmp_path):
    path = save(open_clip_model(), tmp_path / "clip.safetensors")
    slopes, kept = [], []
    for checkpointing in (False, True):
        reward = load_reward("hpsv2", weights=path, checkpointing=checkpointing)
        reward.prepare(PROMPTS)
        pixels, count = pictures(2).requires_grad_(True), [0]

        def note(tensor, count=count):
            count[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            scores = reward(pixels, PROMPTS)
        scores.sum().backward()
        slopes.append(pixels.grad)
        kept.append(count[0])
    assert torch.allclose(slopes[0], slopes[1], atol=1e-7)
    assert kept[1] < kept[0] / 2


def test_prompts_are_embedded_once_and_the_text_tower_does_not_stay(tmp_path, monkeypatch):
    from rlr_core.rewards.towers import clip

    reads = []
    read_clip_really = clip.read_clip
    path = save(open_clip_model(), tmp_path / "clip.safetensors")
    reward = load_reward("hpsv2", weights=path)
    monkeypatch.setattr(clip, "read_clip", lambda *a: reads.append(1) or read_clip_really(*a))
    reward.prepare([*PROMPTS, PROMPTS[0]])
    for _ in range(3):
        reward(pictures(2), PROMPTS)
    assert len(reads) == 1
    reward(pictures(1), ["a prompt that nobody prepared"])
    assert len(reads) == 2
    held = [value for value in vars(reward.prompts).values() if isinstance(value, torch.nn.Module)]
    assert not held


def test_weights_loaded_and_used_in_inference_mode_give_gradients_later(tmp_path):
    path = save(open_clip_model(), tmp_path / "clip.safetensors")
    with torch.inference_mode():
        reward = load_reward("hpsv2", weights=path).to("cpu")
        reward.prepare(PROMPTS)
        reward(pictures(2), PROMPTS)
    pixels = pictures(2).requires_grad_(True)
    reward(pixels, PROMPTS).sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_a_clip_with_no_logit_scale_is_no_pickscore(tmp_path):
    tensors = {k: v for k, v in open_clip_model().state_dict().items() if k != "logit_scale"}
    with pytest.raises(UserError, match="has no logit_scale"):
        load_reward("pickscore", weights=save(tensors, tmp_path / "clip.safetensors"))


def test_the_size_of_the_embedding_is_read_off_the_file(tmp_path):
    tower = ImageTower(read_clip(save(open_clip_model(), tmp_path / "c.safetensors"), CLIP_L), CLIP_L)
    assert (tower.size, tower.depth, tower.sizes.output_dim) == (32, 3, EMBEDDING)


def test_an_unknown_dtype_is_refused_with_the_known_ones(tmp_path):
    path = save(open_clip_model(), tmp_path / "clip.safetensors")
    with pytest.raises(
        UserError, match="Unknown dtype 'float61'; use one of float32, fp32, .*Did you mean 'float16'"
    ):
        load_reward("hpsv2", weights=path, dtype="float61")
