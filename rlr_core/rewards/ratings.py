"""A person's ratings as a reward: pictures go out, numbers come in, between updates.

The ratings so far teach a small head on the pictures' features; that is the surrogate, which gives the black
box a gradient that gets better with every round, and on request the updates between two rounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward, check_scores
from rlr_core.rewards.files import locate
from rlr_core.rewards.rating_folder import RatingFolder
from rlr_core.rewards.rating_head import RatingHead
from rlr_core.rewards.towers.clip import CLIP_L
from rlr_core.rewards.towers.features import ClipFeatures, SimpleFeatures

MOST_RATINGS = 4096
FOLDER = "ratings"
"""Where a run asks, in its folder, unless it is told another place."""


class Ratings(Reward):
    """What a callback, or a person through a folder, says of each picture; higher is better.

    Asks about a whole batch at a time, and never waits: until a folder's scores are there, it raises Pending,
    and so may a callback. All pictures of an update are one round; asked again about the same pictures in
    the same order, it answers from the round's file. A caller that goes on asking after Pending gets all
    pictures of the round written. Its surrogate is a linear head on features of the pictures (CLIP's, or
    simple ones of color and texture), fitted in `after_update` to the ratings of earlier updates. Where
    updates_per_round asks for it and the head predicts ratings better than luck would, the head gives the
    scores of the updates after a round, and nobody is asked.
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
        updates_per_round: int = 1,
    ):
        """ask: pictures [B, 3, H, W] and prompts in, B numbers out; or folder: see rating_folder.py. Without
        either, a run asks in its own folder, in `ratings`.

        clip: a CLIP file for the features; None takes the usual one if it is there, else simple features;
        False takes simple features. updates_per_round: updates from one round to the next; all but the first
        follow the head.
        """
        if ask is not None and folder is not None:
            raise UserError(
                "Reward 'ratings' takes ask= (a callback) or folder= (where pictures go), not both."
            )
        if updates_per_round < 1:
            raise UserError(
                f"Reward 'ratings': updates_per_round must be at least 1, not {updates_per_round}."
            )
        self.ask = ask or self._ask_by_folder
        self.folder = None if folder is None else RatingFolder(folder)
        self.updates_per_round = updates_per_round
        self.features = _features(clip)
        self.surrogate = RatingHead(self.features)
        self.rated = torch.zeros(0, self.features.width)  # features of every picture rated so far
        self.ratings = torch.zeros(0)
        self.rounds = 0  # updates whose pictures were rated
        self.updates_since = 0  # updates since the last round, that round's own included
        self.begin_update()

    def keep_in(self, folder: Path) -> None:
        if self.folder is None:
            self.folder = RatingFolder(folder / FOLDER)

    def begin_update(self) -> None:
        followed = self.surrogate.trusted and self.updates_since < self.updates_per_round
        self.asking = not followed  # inside an update it stays so
        self._asked: list[str] = []  # prompts of the update's pictures so far, in the order asked
        self._new: list[tuple[Tensor, Tensor]] = []  # their features and ratings

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if not self.asking:
            return self.surrogate(images.detach(), prompts).detach()
        self._asked = [*self._asked, *prompts]
        ratings = check_scores(self.ask(images.detach(), prompts), prompts, self.name).detach().cpu()
        with torch.inference_mode(False), torch.no_grad():
            self._new.append((self.features(images.detach().clone()).cpu(), ratings.clone()))
        return ratings.to(images.device)

    def _ask_by_folder(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        if self.folder is None:
            raise UserError("Reward 'ratings' has nobody to ask outside of a run: give it ask= or folder=.")
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
            self.updates_since = 0
        self.updates_since += 1
        self.begin_update()

    def state_dict(self) -> dict[str, Tensor]:
        counts = {"rounds": self.rounds, "updates_since": self.updates_since}
        return {
            "rated": self.rated,
            "ratings": self.ratings,
            **{name: torch.tensor(count) for name, count in counts.items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["rated"].shape[1] != self.features.width:
            raise UserError(
                f"Reward 'ratings' has {self.features.width} features and the saved ratings have "
                f"{state['rated'].shape[1]}; use the CLIP file that the run began with."
            )
        self.rated, self.ratings = state["rated"].cpu().clone(), state["ratings"].cpu().clone()
        self.rounds, self.updates_since = int(state["rounds"]), int(state["updates_since"])
        self.surrogate.fit(self.rated, self.ratings)
        self.begin_update()


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
