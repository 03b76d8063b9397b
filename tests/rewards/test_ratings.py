"""A person's ratings: asked through a callback or a folder, learned by a head that stands in for them."""

import json
import threading
import time

import numpy
import pytest
import torch
from PIL import Image
from reference.rewards_tiny import hugging_face_clip, pictures, save, videos

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.ratings import RatingFolder, ridge


@pytest.fixture(autouse=True)
def no_usual_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RLR_REWARD_MODELS", str(tmp_path / "none"))


def likes_red(images, prompts):
    return (5 * images[:, 0].mean((1, 2)) - 2 * images[:, 2].mean((1, 2))).tolist()


def assorted(count, seed):
    """Pictures that differ in their mean colours."""
    generator = torch.Generator().manual_seed(seed)
    return (
        0.5 * torch.rand(count, 3, 1, 1, generator=generator) + 0.5 * pictures(count, 24, 24, seed)
    ).clamp(0, 1)


def test_the_callbacks_numbers_are_the_scores():
    reward = load_reward("ratings", ask=lambda images, prompts: [3, 1.5])
    assert reward(pictures(2), ["a", "b"]).tolist() == [3.0, 1.5]
    assert not reward.differentiable


@pytest.mark.parametrize("with_clip", [False, True])
def test_the_surrogate_learns_what_the_person_likes(tmp_path, with_clip):
    options = {"clip": save(hugging_face_clip(), tmp_path / "c.safetensors")} if with_clip else {}
    reward = load_reward("ratings", ask=likes_red, **options)
    unseen, prompts = assorted(40, 99), [""] * 40
    for update in range(6):
        reward(assorted(16, update), [""] * 16)
        reward.after_update()
    predicted = reward.surrogate(unseen, prompts)
    actual = torch.tensor(likes_red(unseen, prompts))
    assert torch.corrcoef(torch.stack([predicted, actual]))[0, 1] > (0.7 if with_clip else 0.99)


def test_the_surrogates_gradient_points_where_the_person_would_go():
    reward = load_reward("ratings", ask=likes_red)
    reward(assorted(80, 0), [""] * 80)
    reward.after_update()
    images = assorted(2, 50).requires_grad_(True)
    reward.surrogate(images, ["", ""]).sum().backward()
    with torch.no_grad():
        moved = images + 0.02 * images.grad.sign()
    assert all(new > old for new, old in zip(likes_red(moved, []), likes_red(images, []), strict=True))


def test_inside_an_update_the_surrogate_stands_still():
    """Else it would know the batch it is used on, and the gradient would be biased."""
    reward = load_reward("ratings", ask=likes_red)
    images = assorted(8, 0)
    before = reward.surrogate(images, [""] * 8)
    assert before.abs().max() == 0
    reward(images, [""] * 8)
    assert torch.equal(reward.surrogate(images, [""] * 8), before)
    reward.after_update()
    assert not torch.equal(reward.surrogate(images, [""] * 8), before)


def test_the_surrogate_of_too_few_ratings_is_0_and_has_a_gradient():
    reward = load_reward("ratings", ask=likes_red)
    reward(assorted(3, 0), [""] * 3)
    reward.after_update()
    images = assorted(2, 1).requires_grad_(True)
    scores = reward.surrogate(images, ["", ""])
    scores.sum().backward()
    assert scores.abs().max() == 0 and images.grad.abs().max() == 0


def test_ridge_finds_the_weights_where_there_is_enough_to_tell():
    generator = torch.Generator().manual_seed(0)
    x, truth = torch.randn(200, 10, generator=generator), torch.arange(10.0)
    weight, bias = ridge(x, x @ truth + 7 + 0.01 * torch.randn(200, generator=generator))
    assert torch.allclose(weight, truth, atol=0.02)
    assert bias.item() == pytest.approx(7, abs=0.02)


def test_ridge_predicts_the_mean_where_the_ratings_are_noise():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(20, 300, generator=generator), torch.randn(20, generator=generator)
    weight, bias = ridge(x, noise + 4)
    unseen = torch.randn(500, 300, generator=generator) @ weight + bias
    assert unseen.std() < 0.5 * noise.std()
    assert unseen.mean().item() == pytest.approx(4, abs=0.5)


def test_the_state_restores_ratings_and_head():
    first, second = (load_reward("ratings", ask=likes_red) for _ in range(2))
    first(assorted(16, 0), [""] * 16)
    first.after_update()
    second.load_state_dict(first.state_dict())
    images = assorted(4, 1)
    assert torch.equal(first.surrogate(images, [""] * 4), second.surrogate(images, [""] * 4))
    with pytest.raises(UserError, match="54 features and the saved ratings have 7"):
        second.load_state_dict({"rated": torch.zeros(4, 7), "ratings": torch.zeros(4)})


def test_videos_can_be_rated():
    reward = load_reward("ratings", ask=lambda images, prompts: images.mean((1, 2, 3, 4)))
    for seed in range(3):
        reward(videos(4, 3, seed), [""] * 4)
    reward.after_update()
    assert reward.surrogate(videos(2, 3, 9), ["", ""]).shape == (2,)


def _answer_when_asked(folder, answer, seen):
    """A person in another thread: waits for the round, looks, writes scores.json."""

    def person():
        here = folder / "round_0001"
        while not here.is_dir():
            time.sleep(0.01)
        seen["sizes"] = [Image.open(here / f"{index:03d}.png").size for index in range(2)]
        seen["prompts"] = json.loads((here / "prompts.json").read_text("utf-8"))
        (here / "scores.json").write_text(answer)

    thread = threading.Thread(target=person)
    thread.start()
    return thread


def test_a_folder_carries_pictures_out_and_scores_in(tmp_path):
    seen = {}
    thread = _answer_when_asked(tmp_path, "[2, 4.5]", seen)
    reward = load_reward("ratings", folder=tmp_path, timeout=20)
    assert reward(pictures(2), ["ein Kätzchen", "b"]).tolist() == [2.0, 4.5]
    thread.join()
    assert seen == {"sizes": [(56, 40), (56, 40)], "prompts": ["ein Kätzchen", "b"]}
    image = torch.from_numpy(numpy.array(Image.open(tmp_path / "round_0001" / "000.png")))
    expected = (pictures(2)[0] * 255).round().permute(1, 2, 0)
    assert torch.equal(image.float(), expected)


def test_a_second_round_gets_the_next_number(tmp_path):
    for name in ("round_0007", "round_seven", ".round_0008"):
        (tmp_path / name).mkdir()
    (tmp_path / ".round_0008" / "left_over.png").touch()
    with pytest.raises(UserError, match=r"round_0008.scores\.json came within 0 seconds"):
        RatingFolder(tmp_path, timeout=0)(pictures(1), ["a"])
    assert {path.name for path in (tmp_path / "round_0008").iterdir()} == {"000.png", "prompts.json"}


@pytest.mark.parametrize("answer", ["[1]", "five", '{"a": 1, "b": 2}', "[1, null]", "3"])
def test_an_answer_that_is_no_list_of_as_many_numbers_is_named(tmp_path, answer):
    thread = _answer_when_asked(tmp_path, answer, {})
    with pytest.raises(UserError, match=r"scores\.json must be a list of 2 numbers"):
        RatingFolder(tmp_path, timeout=20, pause=0.05)(pictures(2), ["a", "b"])
    thread.join()


def test_a_callback_that_answers_too_little_is_named():
    with pytest.raises(UserError, match=r"asked about 2 pictures and got \[1\] numbers"):
        load_reward("ratings", ask=lambda images, prompts: [1.0])(pictures(2), ["a", "b"])


def test_there_must_be_one_way_to_ask():
    for options in ({}, {"ask": likes_red, "folder": "x"}):
        with pytest.raises(UserError, match=r"either ask= .* or folder="):
            load_reward("ratings", **options)


def test_numbers_from_outside_are_handed_out_in_order():
    reward = load_reward("scores", scores=[1, 2, 3])
    assert reward(pictures(2), ["", ""]).tolist() == [1, 2]
    with pytest.raises(UserError, match="has 1 numbers for 2 pictures"):
        reward(pictures(2), ["", ""])
    reward.give([4])
    assert reward(pictures(2), ["", ""]).tolist() == [3, 4]
