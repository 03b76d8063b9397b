"""What is learned from a person's ratings: a linear head on a picture's features.

Ridge regression; and a check on ratings left out that says whether it has learned anything at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlr_core.common.random_streams import stream
from rlr_core.rewards.base import Reward
from rlr_core.rewards.towers.features import ClipFeatures, SimpleFeatures

FEWEST_RATINGS = 4
PENALTIES = tuple(10.0**power for power in range(-3, 6))
SHUFFLES = 199
"""How many shuffled sets of the ratings it has to beat, and by how much: the chance to do so with ratings
that say nothing about the pictures is LUCK."""
LUCK = 0.1


class RatingHead(Reward):
    """A linear head on a picture's features, the stand-in for a person; 0 until it has learned something."""

    name = "rating_head"
    takes = "any"

    def __init__(self, features: ClipFeatures | SimpleFeatures):
        self.features = features
        self.weight, self.bias = torch.zeros(features.width), torch.zeros(())
        self.trusted = False
        """Whether it predicts ratings that it has not seen better than luck would."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        features = self.features(images)
        return features @ self.weight.to(features.device) + self.bias.to(features.device)

    def to(self, device: torch.device | str) -> RatingHead:
        self.features.to(device)
        return self

    def fit(self, features: Tensor, ratings: Tensor) -> None:
        """Learn ratings [N] from features [N, D]. Leaves the head alone below four ratings."""
        if len(ratings) >= FEWEST_RATINGS:
            self.weight, self.bias = ridge(features, ratings)
            self.trusted = better_than_luck(features, ratings)


def ridge(features: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [D] and bias of the ridge regression with the smallest leave-one-out error, float32."""
    regression, y = _Ridge(features), ratings.double()[:, None]
    weight = regression.weight(y, PENALTIES[int(regression.errors(y)[:, 0].argmin())])
    return weight.float(), (y.mean() - regression.center @ weight).float()


def better_than_luck(features: Tensor, ratings: Tensor) -> bool:
    """Whether `ridge` predicts each rating from all the others better than it does shuffled ratings.

    A permutation test, the choice of the penalty included; the same ratings get the same answer.
    """
    regression, y = _Ridge(features), ratings.double()
    rng = stream(0, "shuffled ratings", len(y))
    orders = torch.stack([torch.from_numpy(rng.permutation(len(y))) for _ in range(SHUFFLES)], 1)
    errors = regression.errors(torch.cat([y[:, None], y[orders]], 1)).amin(0)  # [1 + SHUFFLES]
    lucky = 1 + int((errors[1:] <= errors[0] * (1 + 1e-9)).sum())
    return lucky / (1 + SHUFFLES) <= LUCK


class _Ridge:
    """Ridge regressions on features [N, D], for any ratings and penalty, from one decomposition."""

    def __init__(self, features: Tensor):
        x = features.double()
        self.center = x.mean(0)
        # One scale for all: what pictures differ in most is what few ratings are most likely about.
        self.spread = (x - self.center).square().mean().sqrt().clamp(min=1e-9)
        self.u, self.s, self.vh = torch.linalg.svd((x - self.center) / self.spread, full_matrices=False)

    def errors(self, ratings: Tensor) -> Tensor:
        """Mean square leave-one-out errors [penalties, M] of ratings [N, M], in closed form."""
        residual = ratings - ratings.mean(0)
        projected = self.u.T @ residual
        errors = []
        for penalty in PENALTIES:
            shrink = self._shrink(penalty)
            leverage = self.u.square() @ shrink + 1 / len(ratings)  # the last term is the intercept's
            left_out = residual - self.u @ (shrink[:, None] * projected)
            errors.append((left_out / (1 - leverage).clamp(min=1e-6)[:, None]).square().mean(0))
        return torch.stack(errors)

    def weight(self, ratings: Tensor, penalty: float) -> Tensor:
        """Weight [D] for ratings [N, 1]."""
        kept = torch.where(self.s > 1e-9, self._shrink(penalty) / self.s.clamp(min=1e-9), 0.0)
        projected = self.u.T @ (ratings - ratings.mean(0))[:, 0]
        return (self.vh.T @ (kept * projected)) / self.spread

    def _shrink(self, penalty: float) -> Tensor:
        return self.s.square() / (self.s.square() + penalty * len(self.u))
