"""What is learned from ratings, and whether it is anything at all; the updates that follow it."""

import pytest
import torch
from reference.rewards_tiny import pictures

from rlr_core.common.pending import Pending
from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.rating_head import LUCK, better_than_luck
from rlr_core.rewards.rating_round import last_round


@pytest.fixture(autouse=True)
def no_usual_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RLR_REWARD_MODELS", str(tmp_path / "none"))


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
def test_ratings_that_say_nothing_pass_as_rarely_as_they_may():
    passed = [better_than_luck(normal(16, 54, seed=s), normal(16, seed=1000 + s).sign()) for s in range(400)]
    assert sum(passed) <= 400 * LUCK + 3 * (400 * LUCK * (1 - LUCK)) ** 0.5


def test_ratings_that_follow_a_feature_pass():
    passed = 0
    for seed in range(50):
        features = normal(32, 20, seed=seed)
        passed += better_than_luck(features, (features[:, 0] + 0.3 * normal(32, seed=99 + seed)).sign())
    assert passed >= 40


def test_ratings_that_are_all_the_same_do_not():
    assert not better_than_luck(normal(16, 5, seed=0), torch.ones(16))


class Person:
    """Likes red; counts how often it is asked."""

    def __init__(self, sense=True):
        self.asked, self.sense = 0, sense

    def __call__(self, images, prompts):
        self.asked += 1
        scores = images[:, 0].mean((1, 2)) if self.sense else normal(len(images), seed=self.asked)
        return torch.where(scores > scores.median(), 1.0, -1.0)


def assorted(seed):
    colors = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    return (0.8 * colors + 0.2 * pictures(16, 24, 24, seed)).clamp(0, 1)


def updates(reward, first, last):
    for number in range(first, last):
        reward.begin_update()
        scores = reward(assorted(number), [""] * 16)
        reward.after_update()
    return scores


def test_a_person_who_is_understood_is_asked_once_a_round():
    person = Person()
    reward = load_reward("ratings", ask=person, clip=False, updates_per_round=4)
    scores = updates(reward, 0, 3)
    assert person.asked == reward.rounds == 1
    assert torch.equal(scores, reward.surrogate(assorted(2), [""] * 16)), "between rounds the head scores"
    updates(reward, 3, 9)
    assert person.asked == reward.rounds == 3  # updates 0, 4 and 8


def test_a_person_who_is_not_understood_is_asked_every_time():
    person = Person(sense=False)
    updates(load_reward("ratings", ask=person, clip=False, updates_per_round=50), 0, 3)
    assert person.asked == 3


def test_a_run_that_goes_on_between_rounds_asks_when_it_would_have():
    options = {"clip": False, "updates_per_round": 4}
    first = load_reward("ratings", ask=Person(), **options)
    updates(first, 0, 2)
    person = Person()
    second = load_reward("ratings", ask=person, **options)
    second.load_state_dict(first.state_dict())
    updates(second, 2, 4)
    assert person.asked == 0
    updates(second, 4, 5)
    assert person.asked == 1


def test_a_round_needs_updates_and_a_reward_somebody_to_ask():
    with pytest.raises(UserError, match="at least 1, not 0"):
        load_reward("ratings", ask=Person(), updates_per_round=0)
    with pytest.raises(UserError, match="nobody to ask outside of a run"):
        load_reward("ratings", clip=False)(pictures(2), ["a", "b"])


def test_a_run_asks_in_its_own_folder_unless_told_another(tmp_path):
    for options, place in (({}, "run/ratings"), ({"folder": tmp_path / "own"}, "own")):
        reward = load_reward("combine", rewards=[load_reward("ratings", clip=False, **options)])
        reward.keep_in(tmp_path / "run")
        with pytest.raises(Pending):
            reward(pictures(2), ["a", "b"])
        assert (tmp_path / place / "round_0001/001.png").is_file()


# --- a round as it is shown to a person ---


@pytest.fixture
def asked(tmp_path):
    reward = load_reward("ratings", clip=False, folder=tmp_path)
    with pytest.raises(Pending):
        reward(pictures(3), ["a", "b", "c"])
    return last_round(tmp_path)


def test_marks_are_kept_until_they_are_the_scores(asked, tmp_path):
    assert asked.number == 1 and asked.prompts == ["a", "b", "c"] and asked.marks() == [None] * 3
    with pytest.raises(UserError, match="nothing to learn from"):
        asked.finish()
    asked.keep([1, None, -0.5])
    assert last_round(tmp_path).marks() == [1, None, -0.5] and not asked.answered
    asked.finish()
    assert asked.answered
    assert load_reward("ratings", clip=False, folder=tmp_path)(pictures(3), ["a", "b", "c"]).tolist() == [
        1,
        0,
        -0.5,
    ]
    with pytest.raises(UserError, match="rated already"):
        asked.keep([1, 1, 1])


@pytest.mark.parametrize("marks", [[1, 2], [1, 2, "3"], [1, 2, float("inf")], [1, 2, 101], [1, 2, True]])
def test_marks_that_are_none_are_refused(asked, marks):
    with pytest.raises(UserError, match="3 numbers from -100 to 100, or null"):
        asked.keep(marks)
    assert asked.marks() == [None] * 3


def test_the_last_round_is_the_one_that_is_asked_about(tmp_path):
    assert last_round(tmp_path) is None
    (tmp_path / "round_0001").mkdir()
    assert last_round(tmp_path) is None  # its pictures are still being written
