"""Pairs of pictures of the same prompts and seeds: how often the second is better, and how sure that is.

Pictures of one prompt resemble each other, so the prompts are what is sampled: the variance of a mean is that
between prompts' sums (cluster-robust), and the quantile is Student's for as many prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlr_core.evaluation.measures import ConfidenceInterval

NORMAL = 1.959963984540054  # the 97.5 % quantile
FEW = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469}
"""Student's 97.5 % quantiles where the expansion is not good enough."""


def win_rate(first: Tensor, second: Tensor, prompts: Sequence[str]) -> ConfidenceInterval:
    """How often `second` scores higher than `first`, ties counting half, with its 95 % interval.

    first, second: scores [N] of picture i by each, which have prompt i and the same seed.
    """
    gains = second.double() - first.double()
    return share_of_wins(0.5 + 0.5 * gains.sign(), prompts)


def share_of_wins(wins: Tensor, prompts: Sequence[str]) -> ConfidenceInterval:
    """Mean of wins [N] (1, or 0, or 0.5 for a tie) with its 95 % interval, which stays inside [0, 1].

    Wilson's interval with as many independent pairs as would have the variance found between prompts (Dean
    and Pagano 2015, doi 10.1093/jssam/smu024): unlike mean +- 2 standard errors it holds near 0 and 1 and
    for few prompts. Where all prompts agree, each counts as one pair. One prompt alone has no interval.
    """
    wins = wins.double()
    rate = wins.mean().item()
    variance, groups = _variance_of_mean(wins, prompts)
    if groups < 2:
        return ConfidenceInterval(rate, None, None)
    spread = rate * (1 - rate)
    pairs = spread / variance if variance > 0 and spread > 0 else float(groups)
    extra = student(groups - 1) ** 2 / pairs
    middle = (rate + extra / 2) / (1 + extra)
    half = (spread * extra + extra**2 / 4) ** 0.5 / (1 + extra)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return ConfidenceInterval(rate, min(low, rate), max(high, rate))  # against rounding


def mean_gain(first: Tensor, second: Tensor, prompts: Sequence[str]) -> ConfidenceInterval:
    """How much higher `second` scores than `first` on average, with its 95 % interval; see `win_rate`."""
    gains = second.double() - first.double()
    mean = gains.mean().item()
    variance, groups = _variance_of_mean(gains, prompts)
    if groups < 2:
        return ConfidenceInterval(mean, None, None)
    half = student(groups - 1) * variance**0.5
    return ConfidenceInterval(mean, mean - half, mean + half)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, by its expansion in 1 / freedom; to 0.001."""
    if freedom in FEW:
        return FEW[freedom]
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _variance_of_mean(values: Tensor, prompts: Sequence[str]) -> tuple[float, int]:
    """The variance of the mean of values [N] by the sums of each prompt, and the number of prompts."""
    numbers: dict[str, int] = {}
    index = torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    groups = len(numbers)
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, index, values - values.mean())
    if groups < 2:
        return 0.0, groups
    return (groups / (groups - 1) * sums.square().sum() / len(values) ** 2).item(), groups
