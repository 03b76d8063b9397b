"""A person's ratings as a reward: pictures go out, numbers come in, between updates.

The ratings so far teach a small head on the pictures' features; that is the surrogate, which gives the black
box a gradient that gets better with every round.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.aesthetic import CLIP_L
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import locate
from rlr_core.rewards.towers.features import ClipFeatures, SimpleFeatures

MOST_RATINGS = 4096
FEWEST_RATINGS = 4
PENALTIES = tuple(10.0**power for power in range(-3, 6))


class Ratings(Reward):
    """What a callback, or a person through a folder, says of each picture; higher is better.

    Asks about a whole batch at a time. Its surrogate is a linear head on features of the pictures (CLIP's, or
    simple ones of colour and texture), fitted in `after_update` to the ratings of earlier updates.
    """

    name = "ratings"
    takes = "any"
    differentiable = False
    whole_batch = True

    def __init__(
        self,
        ask: Callable[[Tensor, Sequence[str]], Sequence[float] | Tensor] | None = None,
        folder: str | os.PathLike | None = None,
        clip: str | os.PathLike | bool | None = None,
        timeout: float | None = None,
    ):
        """ask: pictures [B, 3, H, W] and prompts in, B numbers out; or folder: see `RatingFolder`.

        clip: a CLIP file for the features; None takes the usual one if it is there, else simple features;
        False takes simple features. timeout: seconds to wait for a folder's scores; None waits for ever.
        """
        if (ask is None) == (folder is None):
            raise UserError("Reward 'ratings' needs either ask= (a callback) or folder= (where pictures go).")
        self.ask = ask or RatingFolder(folder, timeout)
        self.features = _features(clip)
        self.surrogate: RatingHead = RatingHead(self.features)
        self.rated = torch.zeros(0, self.features.width)  # features of every picture rated so far
        self.ratings = torch.zeros(0)
        self._new: list[tuple[Tensor, Tensor]] = []  # of the update under way

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        ratings = torch.as_tensor(self.ask(images.detach(), prompts), dtype=torch.float32).cpu()
        if ratings.shape != (len(prompts),):
            raise UserError(
                f"Reward 'ratings' asked about {len(prompts)} pictures and got {list(ratings.shape)} numbers."
            )
        with torch.inference_mode(False), torch.no_grad():
            self._new.append((self.features(images.detach().clone()).cpu(), ratings.clone()))
        return ratings.to(images.device)

    def to(self, device: torch.device | str) -> Ratings:
        self.features.to(device)
        return self

    def after_update(self) -> None:
        if self._new:
            features, ratings = zip(*self._new, strict=True)
            self.rated = torch.cat([self.rated, *features])[-MOST_RATINGS:]
            self.ratings = torch.cat([self.ratings, *ratings])[-MOST_RATINGS:]
            self._new = []
            self.surrogate.fit(self.rated, self.ratings)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rated": self.rated, "ratings": self.ratings}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["rated"].shape[1] != self.features.width:
            raise UserError(
                f"Reward 'ratings' has {self.features.width} features and the saved ratings have "
                f"{state['rated'].shape[1]}; use the CLIP file that the run began with."
            )
        self.rated, self.ratings = state["rated"].cpu().clone(), state["ratings"].cpu().clone()
        self._new = []
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
    centre, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-6, spread, torch.inf)  # what never varies explains nothing
    u, s, vh = torch.linalg.svd((x - centre) / spread, full_matrices=False)
    residual = y - y.mean()
    projected = u.T @ residual
    best = None
    for penalty in PENALTIES:
        shrink = s.square() / (s.square() + penalty * len(y))
        leverage = u.square() @ shrink + 1 / len(y)  # the last term is the intercept's
        error = ((residual - u @ (shrink * projected)) / (1 - leverage).clamp(min=1e-6)).square().mean()
        if best is None or error < best[0]:
            best = error, shrink
    kept = torch.where(s > 1e-9, best[1] / s.clamp(min=1e-9), 0.0)
    weight = (vh.T @ (kept * projected)) / spread
    return weight.float(), (y.mean() - centre @ weight).float()


class RatingFolder:
    """Asks through a folder: writes round_0001/000.png, 001.png, ... and prompts.json, and waits there for
    scores.json, a list of numbers in the pictures' order. A video is one picture, its frames side by side."""

    def __init__(self, folder: str | os.PathLike, timeout: float | None = None, pause: float = 0.2):
        """timeout: seconds to wait, None for ever; pause: seconds between two looks."""
        self.folder, self.timeout, self.pause = Path(folder), timeout, pause

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> list[float]:
        """Scores of images [B, 3, H, W] or [B, F, 3, H, W]. Raises UserError when no usable answer comes."""
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [path.name.removeprefix("round_") for path in self.folder.glob("round_*")]
        last = max((int(number) for number in numbers if number.isdecimal()), default=0)
        here = self.folder / f"round_{last + 1:04d}"
        unfinished = self.folder / f".{here.name}"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was stopped while it wrote
        unfinished.mkdir()
        for index, image in enumerate(images):
            strip = torch.cat(list(image), -1) if image.ndim == 4 else image
            pixels = (strip.float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(pixels).save(unfinished / f"{index:03d}.png")
        (unfinished / "prompts.json").write_text(json.dumps(list(prompts), ensure_ascii=False), "utf-8")
        unfinished.rename(here)  # whoever watches the folder sees a round only when it is whole
        return self._wait(here / "scores.json", len(prompts))

    def _wait(self, answer: Path, count: int) -> list[float]:
        start, seen = time.monotonic(), None
        while True:
            text = answer.read_text("utf-8") if answer.is_file() else None
            if text is not None:
                try:
                    scores = json.loads(text)
                    if len(scores) == count:
                        return [float(score) for score in scores]
                except (ValueError, TypeError):
                    pass
                if text == seen:  # the same twice: not a file that is being written
                    raise UserError(f"{answer} must be a list of {count} numbers, one a picture.")
                seen = text
            if self.timeout is not None and time.monotonic() - start > self.timeout:
                raise UserError(f"No {answer} came within {self.timeout:g} seconds.")
            time.sleep(self.pause)


class Scores(Reward):
    """Numbers handed in from outside, in the order the pictures are scored: what a node's socket brings."""

    name = "scores"
    takes = "any"
    differentiable = False

    def __init__(self, scores: Sequence[float] | Tensor = ()):
        """scores: numbers for the next pictures; `give` adds more."""
        self.waiting = torch.zeros(0)
        self.give(scores)

    def give(self, scores: Sequence[float] | Tensor) -> None:
        """Add scores [N] for the next N pictures."""
        new = torch.as_tensor(scores, dtype=torch.float32).detach().cpu().flatten()
        self.waiting = torch.cat([self.waiting, new])

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(self.waiting) < len(prompts):
            raise UserError(f"Reward 'scores' has {len(self.waiting)} numbers for {len(prompts)} pictures.")
        now, self.waiting = self.waiting[: len(prompts)], self.waiting[len(prompts) :]
        return now.to(images.device)


def _features(clip: str | os.PathLike | bool | None) -> ClipFeatures | SimpleFeatures:
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
