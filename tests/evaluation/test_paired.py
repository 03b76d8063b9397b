"""Win rates: what they count, and that their intervals cover the truth as often as they say."""

from __future__ import annotations

import math

import pytest
import torch

from rlr_core.evaluation.paired import mean_gain, share_of_wins, student, win_rate


def test_wins_losses_and_ties_are_counted():
    first, second = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 1.0, 9.0])
    assert win_rate(first, second, list("abcd")).mean == 0.625
    assert win_rate(second, first, list("abcd")).mean == 0.375
    assert mean_gain(first, second, list("abcd")).mean == 1.0


def test_swapping_the_two_mirrors_the_interval():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 24, generator=generator)
    prompts = [str(i // 3) for i in range(24)]
    there, back = win_rate(first, second, prompts), win_rate(second, first, prompts)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))


def test_more_pictures_of_a_prompt_that_say_the_same_make_nothing_surer():
    wins = torch.tensor([1.0, 0, 1, 1, 0, 1, 0, 1])
    once = share_of_wins(wins, [str(i) for i in range(8)])
    again = share_of_wins(wins.repeat_interleave(5), [str(i // 5) for i in range(40)])
    assert again == pytest.approx(once)
    as_if_independent = share_of_wins(wins.repeat_interleave(5), [str(i) for i in range(40)])
    assert as_if_independent.high - as_if_independent.low < 0.6 * (once.high - once.low)


def test_when_all_agree_the_interval_still_has_a_width_and_one_prompt_has_none():
    all_won = share_of_wins(torch.ones(12), [str(i // 2) for i in range(12)])
    assert all_won.mean == all_won.high == 1.0 and 0.3 < all_won.low < 0.6
    all_alike = share_of_wins(torch.full((12,), 0.5), [str(i) for i in range(12)])
    assert all_alike.mean == 0.5 and all_alike.low < 0.35 < 0.65 < all_alike.high
    assert share_of_wins(torch.ones(4), ["a"] * 4) == (1.0, None, None)


def test_independent_pairs_have_wilsons_interval():
    """Up to Student's quantile and n / (n - 1): Newcombe 1998, table I, 81 of 263 is 0.2553 to 0.3662."""
    found = share_of_wins(torch.tensor([1.0] * 81 + [0.0] * 182), [str(i) for i in range(263)])
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-3)


def test_students_quantiles():
    wanted = {1: 12.706, 3: 3.182, 6: 2.447, 7: 2.3646, 10: 2.2281, 30: 2.0423, 1000: 1.9623}
    for freedom, quantile in wanted.items():
        assert student(freedom) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "seeds", "gain", "between", "tie"),
    [
        (32, 4, 0.3, 0.5, 0.0),
        (100, 1, 0.0, 0.0, 0.3),
        (16, 8, 0.8, 0.7, 0.0),
        (20, 2, 1.3, 0.3, 0.0),
        (8, 4, 0.3, 0.5, 0.0),
        (16, 2, 1.8, 0.3, 0.0),
        (32, 2, 0.0, 1.0, 0.2),
    ],
)
def test_the_intervals_cover_the_truth_in_95_percent_of_repeats(prompts, seeds, gain, between, tie):
    """1,000 repeats each: differences gain + prompt's own + picture's own, ties within `tie` of zero."""
    generator = torch.Generator().manual_seed(0)
    deviation = math.hypot(1, between)
    above, below = ((1 + math.erf((gain - s * tie) / deviation / 2**0.5)) / 2 for s in (1, -1))
    truth = (above + below) / 2
    names = [str(i) for i in range(prompts) for _ in range(seeds)]
    by_wins = by_mean = naive = 0
    for _ in range(1000):
        own = between * torch.randn(prompts, 1, generator=generator)
        differences = (gain + own + torch.randn(prompts, seeds, generator=generator)).flatten()
        rounded = torch.where(differences.abs() <= tie, 0.0, differences)
        wins = win_rate(torch.zeros_like(rounded), rounded, names)
        mean = mean_gain(torch.zeros_like(differences), differences, names)
        alone = share_of_wins(0.5 + 0.5 * rounded.sign(), [str(i) for i in range(len(rounded))])
        by_wins += wins.low <= truth <= wins.high
        by_mean += mean.low <= gain <= mean.high
        naive += alone.low <= truth <= alone.high
    assert 930 <= by_wins <= 970
    assert 930 <= by_mean <= 970
    if seeds == 8:  # what it would be if pictures of one prompt counted as independent
        assert naive < 850
