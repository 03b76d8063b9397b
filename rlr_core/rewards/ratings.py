"""A person's ratings as a reward: pictures go out, numbers come in, between updates.

The ratings so far teach a small head on the pictures' features; that is the surrogate, which gives the black
box a gradient that gets better with every round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward, check_scores
from rlr_core.rewards.files import locate
from rlr_core.rewards.rating_folder import RatingFolder
from rlr_core.rewards.towers.clip import CLIP_L
from rlr_core.rewards.towers.features import ClipFeatures, SimpleFeatures

MOST_RATINGS = 4096
FEWEST_RATINGS = 4
PENALTIES = tuple(10.0**power for power in range(-3, 6))


class Ratings(Reward):
    """What a callback, or a person through a folder, says of each picture; higher is better.

    Asks about a whole batch at a time, and never waits: until a folder's scores are there, it raises Pending,
    and so may a callback. All pictures of an update are one round; asked again about the same pictures in
    the same order, it answers from the round's file. A caller that goes on asking after Pending gets all
    pictures of the round written. Its surrogate is a linear head on features of the pictures (CLIP's, or
    simple ones of color and texture), fitted in `after_update` to the ratings of earlier updates.
    """

    name = "ratings"
    takes = "any"
    differentiable = False
    whole_batch = True
    evaluable = False
    surrogate: RatingHead

    def __init__(
        self,
        ask: Callable[[Tensor, Sequence[str]], Sequence[float] | Tensor] | None = None,
        folder: str | os.PathLike | None = None,
        clip: str | os.PathLike | Literal[False] | None = None,
    ):
        """ask: pictures [B, 3, H, W] and prompts in, B numbers out; or folder: see rating_folder.py.

        clip: a CLIP file for the features; None takes the usual one if it is there, else simple features;
        False takes simple features.
        """
        if ask is not None and folder is None:
            self.ask = ask
        elif folder is not None and ask is None:
            self.ask = self._ask_by_folder
            self.folder = RatingFolder(folder)
        else:
            raise UserError("Reward 'ratings' needs either ask= (a callback) or folder= (where pictures go).")
        self.features = _features(clip)
        self.surrogate = RatingHead(self.features)
        self.rated = torch.zeros(0, self.features.width)  # features of every picture rated so far
        self.ratings = torch.zeros(0)
        self.rounds = 0  # updates whose pictures were rated
        self.begin_update()

    def begin_update(self) -> None:
        self._asked: list[str] = []  # prompts of the update's pictures so far, in the order asked
        self._new: list[tuple[Tensor, Tensor]] = []  # their features and ratings

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self._asked = [*self._asked, *prompts]
        ratings = check_scores(self.ask(images.detach(), prompts), prompts, self.name).detach().cpu()
        with torch.inference_mode(False), torch.no_grad():
            self._new.append((self.features(images.detach().clone()).cpu(), ratings.clone()))
        return ratings.to(images.device)

    def _ask_by_folder(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        return self.folder.scores(self.rounds + 1, images, self._asked)

    def to(self, device: torch.device | str) -> Ratings:
        self.features.to(device)
        return self

    def after_update(self) -> None:
        if self._new:
            features, ratings = zip(*self._new, strict=True)
            self.rated = torch.cat([self.rated, *features])[-MOST_RATINGS:]
            self.ratings = torch.cat([self.ratings, *ratings])[-MOST_RATINGS:]
            self.surrogate.fit(self.rated, self.ratings)
            self.rounds += 1
        self.begin_update()

    def state_dict(self) -> dict[str, Tensor]:
        return {"rated": self.rated, "ratings": self.ratings, "rounds": torch.tensor(self.rounds)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["rated"].shape[1] != self.features.width:
            raise UserError(
                f"Reward 'ratings' has {self.features.width} features and the saved ratings have "
                f"{state['rated'].shape[1]}; use the CLIP file that the run began with."
            )
        self.rated, self.ratings = state["rated"].cpu().clone(), state["ratings"].cpu().clone()
        self.rounds = int(state["rounds"])
        self.begin_update()
        self.surrogate.fit(self.rated, self.ratings)


class RatingHead(Reward):
    """A linear head on a picture's features, the stand-in for a person; 0 until it has learned something."""

    name = "rating_head"
    takes = "any"

    def __init__(self, features: ClipFeatures | SimpleFeatures):
        self.features = features
        self.weight, self.bias = torch.zeros(features.width), torch.zeros(())

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        features = self.features(images)
        return features @ self.weight.to(features.device) + self.bias.to(features.device)

    def to(self, device: torch.device | str) -> RatingHead:
        self.features.to(device)
        return self

    def fit(self, features: Tensor, ratings: Tensor) -> None:
        """Ridge regression of ratings [N] on features [N, D], with the penalty that predicts each rating best
        from all the others (leave-one-out, in closed form). Leaves the head alone below four ratings."""
        if len(ratings) >= FEWEST_RATINGS:
            self.weight, self.bias = ridge(features, ratings)


def ridge(features: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [D] and bias of the ridge regression with the smallest leave-one-out error, float32."""
    x, y = features.double(), ratings.double()
    center, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-6, spread, torch.inf)  # what never varies explains nothing
    u, s, vh = torch.linalg.svd((x - center) / spread, full_matrices=False)
    residual = y - y.mean()
    projected = u.T @ residual
    best: tuple[Tensor, Tensor] = (torch.tensor(torch.inf), torch.zeros_like(s))  # error, shrinkage
    for penalty in PENALTIES:
        shrink = s.square() / (s.square() + penalty * len(y))
        leverage = u.square() @ shrink + 1 / len(y)  # the last term is the intercept's
        error = ((residual - u @ (shrink * projected)) / (1 - leverage).clamp(min=1e-6)).square().mean()
        if error < best[0]:
            best = error, shrink
    kept = torch.where(s > 1e-9, best[1] / s.clamp(min=1e-9), 0.0)
    weight = (vh.T @ (kept * projected)) / spread
    return weight.float(), (y.mean() - center @ weight).float()


def _features(clip: str | os.PathLike | Literal[False] | None) -> ClipFeatures | SimpleFeatures:
    """CLIP's features if its file is given or in its usual place, else simple ones."""
    if clip is False:
        return SimpleFeatures()
    try:
        path = locate(CLIP_L, clip)
    except UserError:
        if clip is not None:
            raise
        return SimpleFeatures()
    return ClipFeatures(path)
