"""A person's ratings: asked through a callback or a folder, learned by a head that stands in for them."""

import json
import signal
import subprocess
import sys

import numpy
import pytest
import torch
from PIL import Image
from reference.rewards_tiny import hugging_face_clip, pictures, save, videos

from rlr_core.common.pending import Pending
from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.ratings import ridge


@pytest.fixture(autouse=True)
def no_usual_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RLR_REWARD_MODELS", str(tmp_path / "none"))


def likes_red(images, prompts):
    return (5 * images[:, 0].mean((1, 2)) - 2 * images[:, 2].mean((1, 2))).tolist()


def assorted(count, seed):
    """Pictures that differ in their mean colors."""
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
        second.load_state_dict(
            {"rated": torch.zeros(4, 7), "ratings": torch.zeros(4), "rounds": torch.tensor(1)}
        )


def test_videos_can_be_rated():
    reward = load_reward("ratings", ask=lambda images, prompts: images.mean((1, 2, 3, 4)))
    for seed in range(3):
        reward(videos(4, 3, seed), [""] * 4)
    reward.after_update()
    assert reward.surrogate(videos(2, 3, 9), ["", ""]).shape == (2,)


def rounds(folder):
    """A reward that asks through a folder, as a fresh process would build it."""
    return load_reward("ratings", folder=folder, clip=False)


def answer(folder, scores, number=1):
    (folder / f"round_{number:04d}" / "scores.json").write_text(json.dumps(scores))


def test_a_folder_gets_the_pictures_and_nobody_waits(tmp_path):
    images, prompts = pictures(2), ["ein Kätzchen", "b"]
    with pytest.raises(Pending) as pending:
        rounds(tmp_path)(images, prompts)
    here = tmp_path / "round_0001"
    assert str(here / "scores.json") in pending.value.reason and "2 of 2 pictures" in pending.value.reason
    assert {path.name for path in here.iterdir()} == {"000.png", "001.png", "prompts.json"}
    assert json.loads((here / "prompts.json").read_text("utf-8")) == prompts
    written = torch.from_numpy(numpy.array(Image.open(here / "000.png"))).permute(2, 0, 1)
    assert torch.equal(written.float(), (images[0] * 255).round())


def test_the_same_update_taken_up_again_gets_its_answers(tmp_path):
    images, prompts = pictures(2), ["a", "b"]
    with pytest.raises(Pending):
        rounds(tmp_path)(images, prompts)
    answer(tmp_path, [2, 4.5])
    again = rounds(tmp_path)
    again.begin_update()
    assert again(images, prompts).tolist() == [2.0, 4.5]


def test_all_pieces_of_an_update_are_one_round_in_the_order_asked(tmp_path):
    images, prompts = pictures(5), list("abcde")
    reward = rounds(tmp_path)
    for piece in (slice(0, 2), slice(2, 4), slice(4, 5)):  # a caller that goes on asking
        with pytest.raises(Pending):
            reward(images[piece], prompts[piece])
    assert json.loads((tmp_path / "round_0001" / "prompts.json").read_text()) == prompts
    assert len(list((tmp_path / "round_0001").glob("*.png"))) == 5
    answer(tmp_path, [5, 4, 3, 2, 1])
    reward.begin_update()
    scores = [reward(images[piece], prompts[piece]) for piece in (slice(0, 3), slice(3, 5))]
    assert torch.cat(scores).tolist() == [5, 4, 3, 2, 1]


def test_a_caller_that_stops_at_pending_gets_the_round_answered_piece_by_piece(tmp_path):
    images, prompts = pictures(4), list("abcd")
    for rated in ([], [1, 2]):
        reward = rounds(tmp_path)
        if rated:
            answer(tmp_path, rated)
            assert reward(images[:2], prompts[:2]).tolist() == rated
        with pytest.raises(Pending, match=f"2 of {len(rated) + 2} pictures"):
            reward(images[len(rated) : len(rated) + 2], prompts[len(rated) : len(rated) + 2])
    answer(tmp_path, [1, 2, 3, 4])
    reward = rounds(tmp_path)
    assert [reward(images[i : i + 2], prompts[i : i + 2]).tolist() for i in (0, 2)] == [[1, 2], [3, 4]]


def test_a_round_ends_with_its_update_and_the_next_gets_the_next_number(tmp_path):
    reward = rounds(tmp_path)
    for number in (1, 2, 3):
        reward.begin_update()
        images = pictures(2, seed=number)
        with pytest.raises(Pending, match=f"round_000{number}"):
            reward(images, ["a", "b"])
        answer(tmp_path, [number, -number], number)
        reward = _restored(rounds(tmp_path), reward)
        reward.begin_update()
        assert reward(images, ["a", "b"]).tolist() == [number, -number]
        reward.after_update()
    assert reward.rounds == 3 and reward.ratings.tolist() == [1, -1, 2, -2, 3, -3]


def _restored(fresh, saved):
    fresh.load_state_dict(saved.state_dict())
    return fresh


def test_an_update_that_rates_nothing_is_no_round(tmp_path):
    reward = rounds(tmp_path)
    reward.begin_update(), reward.after_update()
    with pytest.raises(Pending, match="round_0001"):
        reward(pictures(1), ["a"])
    reward.after_update()  # given up: nothing was rated
    with pytest.raises(Pending, match="round_0001"):
        reward(pictures(1), ["a"])


def test_pictures_of_another_run_in_the_folder_are_noticed(tmp_path):
    with pytest.raises(Pending):
        rounds(tmp_path)(pictures(2), ["a", "b"])
    answer(tmp_path, [1, 2])
    for images, prompts in (
        (pictures(2, seed=5), ["a", "b"]),
        (pictures(2, 8, 8), ["a", "b"]),
        (pictures(2), ["a", "c"]),
    ):
        with pytest.raises(UserError, match="is not what this run asks about.*empty folder"):
            rounds(tmp_path)(images, prompts)


def test_ratings_may_come_as_a_table_in_any_order(tmp_path):
    images, prompts = pictures(3), list("abc")
    with pytest.raises(Pending):
        rounds(tmp_path)(images, prompts)
    table = tmp_path / "round_0001" / "ratings.csv"
    table.write_text("\ufefffile,score\r\n002.png,3\r\n\r\n000.png, 1.5\r\n001.png,\r\n", "utf-8")
    with pytest.raises(Pending, match="1 of 3 pictures"):
        rounds(tmp_path)(images, prompts)
    table.write_text("002.png,3\n000.png,1.5\n001.png,2\n")
    assert rounds(tmp_path)(images, prompts).tolist() == [1.5, 2, 3]


@pytest.mark.parametrize("scores", ["[1]", "[]", "[1, null]", "[null, 2]"])
def test_scores_that_are_not_all_there_are_waited_for(tmp_path, scores):
    for text in (None, scores):
        if text is not None:
            (tmp_path / "round_0001" / "scores.json").write_text(text)
        with pytest.raises(Pending):
            rounds(tmp_path)(pictures(2), ["a", "b"])


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        *(
            ("scores.json", text, r"scores\.json must be a list of 2 numbers")
            for text in ("five", "", '{"a": 1}', "[1, 2, 3]", '["1", 2]', "[1, NaN]", "3", "[1, [2]]")
        ),
        ("ratings.csv", "000.png,1\n007.png,2\n", r"line 2: '007\.png' is none of the round's 2 pictures"),
        ("ratings.csv", "000.png,1\n000.png,2\n", r"line 2: '000\.png' comes twice"),
        ("ratings.csv", "000.png,good\n", "line 1: 'good' is no number"),
        ("ratings.csv", "000.png,inf\n", "line 1: 'inf' is no number"),
    ],
)
def test_scores_that_cannot_be_read_are_named(tmp_path, name, text, sentence):
    with pytest.raises(Pending):
        rounds(tmp_path)(pictures(2), ["a", "b"])
    (tmp_path / "round_0001" / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        rounds(tmp_path)(pictures(2), ["a", "b"])


def test_a_damaged_list_of_prompts_is_named(tmp_path):
    with pytest.raises(Pending):
        rounds(tmp_path)(pictures(2), ["a", "b"])
    (tmp_path / "round_0001" / "prompts.json").write_text("[")
    with pytest.raises(UserError, match=r"prompts\.json is not what this run asks about"):
        rounds(tmp_path)(pictures(2), ["a", "b"])


ASK = """
import os, signal, sys, torch
from rlr_core.common.pending import Pending
from rlr_core.rewards import load_reward

folder, kill_at = sys.argv[1], int(sys.argv[2])
replace, count = os.replace, [0]

def replace_or_die(*paths):
    count[0] += 1
    if count[0] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)

os.replace = replace_or_die
images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
reward = load_reward("ratings", folder=folder, clip=False)
reward.begin_update()
try:
    print(torch.cat([reward(images[:2], ["a", "b"]), reward(images[2:], ["c"])]).tolist())
except Pending as pending:
    print(pending.reason)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [1, 2, 3])  # before a picture, between two, before the prompts
def test_a_kill_while_asking_loses_nothing(tmp_path, kill_at):
    """The next process completes the round, a later one finds the answers; no torn file is left behind."""

    def process(kill_at=0):
        command = [sys.executable, "-c", ASK, str(tmp_path), str(kill_at)]
        return subprocess.run(command, capture_output=True, text=True)

    killed = process(kill_at)
    assert killed.returncode == -signal.SIGKILL
    assert "2 of 2 pictures" in process().stdout
    for picture in ("000.png", "001.png"):
        assert Image.open(tmp_path / "round_0001" / picture).size == (16, 16)
    answer(tmp_path, [1, 2])
    assert "1 of 3 pictures" in process().stdout
    answer(tmp_path, [1, 2, 3])
    assert process().stdout.strip() == "[1.0, 2.0, 3.0]"
    names = {path.name for path in (tmp_path / "round_0001").iterdir()}
    assert names == {"000.png", "001.png", "002.png", "prompts.json", "scores.json"}


def test_a_callback_may_say_that_it_has_no_answer_yet():
    answers = []

    def ask(images, prompts):
        if not answers:
            raise Pending("The form is not filled in.")
        return answers[: len(prompts)]

    reward = load_reward("combine", rewards=[load_reward("ratings", ask=ask, clip=False)], normalize=False)
    reward.begin_update()
    with pytest.raises(Pending, match="The form"):
        reward(pictures(2), ["a", "b"])
    answers += [3, 4]
    reward.begin_update()
    assert reward(pictures(2), ["a", "b"]).tolist() == [3, 4]


def test_held_out_pictures_are_not_for_a_person_but_for_the_head():
    reward = load_reward("combine", rewards=["brightness", load_reward("ratings", ask=likes_red, clip=False)])
    assert not reward.evaluable and reward.surrogate.evaluable
    assert load_reward("brightness").evaluable


def test_ratings_of_an_update_that_was_given_up_are_not_learned_from():
    reward = load_reward("ratings", ask=likes_red, clip=False)
    for images in (assorted(8, 0), assorted(8, 1)):
        reward.begin_update()
        reward(images, [""] * 8)
    reward.after_update()
    assert reward.rounds == 1 and torch.equal(reward.ratings, torch.tensor(likes_red(assorted(8, 1), [])))


def test_a_callback_that_answers_too_little_is_named():
    with pytest.raises(UserError, match=r"'ratings' returned shape \[1\] for 2 pictures"):
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
