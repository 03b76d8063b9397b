"""The built-in demo: its judge sees, its model draws but errs, its reward tells right from nearly right."""

from __future__ import annotations

import random

import pytest
import torch

from rlr_core.demo import model_path, reward_path
from rlr_core.demo.judge import DemoJudge
from rlr_core.demo.reward import DemoReward
from rlr_core.demo.scenes import (
    all_scenes,
    canonical,
    caption,
    draw,
    held_out_prompts,
    parse,
    random_scene,
    swapped,
    training_prompts,
)
from rlr_core.errors import UserError

COUNT = 300


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(5)
    return [random_scene(rng) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def captions(scenes):
    return [caption(scene) for scene in scenes]


@pytest.fixture(scope="module")
def wrong_captions(scenes):
    rng = random.Random(6)
    return [caption(swapped(scene, rng)) for scene in scenes]


@pytest.fixture(scope="module")
def pictures(scenes):
    return draw(scenes, torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model_path(), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def round_trips(pipeline, pictures):
    with torch.no_grad():
        latents = pipeline.vae.encode(pictures * 2 - 1).latent_dist.mode()
        return (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def reward():
    return DemoReward()


def test_every_caption_is_read_back_as_its_scene():
    assert all(parse(caption(scene)) == scene for scene in all_scenes())
    assert len({caption(scene) for scene in all_scenes()}) == 18 + 18 * 17 * 4


@pytest.mark.parametrize(
    "prompt", ["a dog", "a red circle above", "a red circle near a blue square", "a pink circle", ""]
)
def test_a_sentence_of_another_world_is_refused(prompt):
    with pytest.raises(UserError, match="Not a caption"):
        parse(prompt)


def test_no_held_out_picture_is_a_training_picture_in_other_words():
    training = {canonical(parse(prompt)) for prompt in training_prompts()}
    held_out = {canonical(parse(prompt)) for prompt in held_out_prompts()}
    assert not training & held_out
    assert (len(training_prompts()), len(held_out_prompts())) == (984, 240)
    assert training_prompts() == training_prompts()


def test_judge_is_right_about_true_scenes(pictures, captions):
    assert DemoJudge()(pictures, captions).mean() >= 0.995


def test_judge_says_no_to_nearly_right_captions(pictures, wrong_captions):
    assert DemoJudge()(pictures, wrong_captions).mean() <= 0.01


def test_judge_wants_all_shapes_and_no_more(pictures, captions, scenes):
    pairs = [i for i, scene in enumerate(scenes) if scene.second]
    half_told = [f"a {scenes[i].first}" for i in pairs]
    assert DemoJudge()(pictures[pairs], half_told).sum() == 0
    assert DemoJudge()(torch.full_like(pictures[:8], 0.88), captions[:8]).sum() == 0


@pytest.mark.slow
def test_judge_is_right_about_pictures_through_the_autoencoder(round_trips, captions, wrong_captions):
    assert DemoJudge()(round_trips, captions).mean() >= 0.97
    assert DemoJudge()(round_trips, wrong_captions).mean() <= 0.01


def test_weights_are_small_and_load_as_float32(pipeline):
    weights = [*model_path().rglob("*"), *reward_path().rglob("*")]
    assert sum(file.stat().st_size for file in weights if file.is_file()) <= 15e6
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}


@pytest.mark.slow
def test_base_model_is_often_right_and_often_wrong(pipeline):
    prompts = held_out_prompts()[:160]
    images = pipeline(
        prompts,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert images.shape == (160, 3, 64, 64)
    assert 0.40 <= DemoJudge()(images, prompts).mean() <= 0.80


@pytest.mark.slow
def test_reward_prefers_the_right_caption(reward, round_trips, captions, wrong_captions):
    right, wrong = reward(round_trips, captions), reward(round_trips, wrong_captions)
    assert (right > wrong).float().mean() >= 0.97
    assert right.mean() > wrong.mean() + 0.3
    assert float(wrong.min()) > 0
    assert float(right.max()) < 1


@pytest.mark.slow
def test_reward_has_a_finite_gradient_that_raises_it(reward, round_trips, wrong_captions):
    images = round_trips[:32].clone().requires_grad_(True)
    before = reward(images, wrong_captions[:32])
    before.sum().backward()
    assert torch.isfinite(images.grad).all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    moved = images.detach() + 0.05 * images.grad / images.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert reward(moved.clamp(0, 1), wrong_captions[:32]).mean() > before.mean()


def test_reward_refuses_a_prompt_it_knows_nothing_of(reward, pictures):
    with pytest.raises(UserError, match="Not a caption"):
        reward(pictures[:1], ["a photo of a cat"])


def test_reward_takes_pictures_of_any_size(reward, pictures, captions):
    large = torch.nn.functional.interpolate(pictures[:8], scale_factor=2, mode="bilinear")
    assert torch.allclose(reward(large, captions[:8]), reward(pictures[:8], captions[:8]), atol=0.1)


@pytest.mark.slow
def test_build_script_writes_a_folder_that_loads(tmp_path):
    from diffusers import StableDiffusionPipeline

    from rlr_core.demo.build.__main__ import QUICK, build

    build(tmp_path, seed=3, budget=QUICK)
    StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    scores = DemoReward(tmp_path / "reward")(torch.rand(2, 3, 64, 64), ["a red circle", "a blue square"])
    assert torch.isfinite(scores).all()
