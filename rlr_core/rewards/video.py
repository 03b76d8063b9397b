"""Rewards for videos [B, F, 3, H, W]: any picture reward on sampled frames, flicker, motion, consistency."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.base import Reward, per_frame
from rlr_core.rewards.files import locate
from rlr_core.rewards.towers.clip import CLIP_L, ImageTower
from rlr_core.rewards.towers.clip_layout import read_clip
from rlr_core.rewards.towers.preprocess import crop_shorter_side, luminance
from rlr_core.rewards.wrapper import Wrapper

REDUCTIONS = ("mean", "minimum", "softminimum")


class OnFrames(Wrapper):
    """A picture reward on frames spread evenly over the video, both ends included, reduced to one number.

    softminimum: -t log(mean(exp(-score / t))), between the mean (large t) and the minimum (small t), with a
    gradient for every frame, most for the worst.
    """

    name = "video"
    takes = "videos"

    def __init__(self, reward: Any, frames: int | None = 8, reduce: str = "mean", temperature: float = 1.0):
        """reward: a name, {name: {option: value}}, a callable or a Reward; frames: how many, None for all;
        temperature: t, in units of the reward's score. Raises UserError for settings that cannot work."""
        if reduce not in REDUCTIONS:
            raise UserError(f"Reward 'video': reduce must be one of {', '.join(REDUCTIONS)}, not {reduce!r}.")
        if frames is not None and frames < 1 or temperature <= 0:
            raise UserError(
                f"Reward 'video': frames must be at least 1 and temperature above 0, "
                f"not {frames} and {temperature}."
            )
        self.reward = load_reward(reward)
        if self.reward.takes == "videos":
            raise UserError(
                f"Reward 'video' samples frames for a picture reward; {self.reward.name!r} takes videos."
            )
        super().__init__([self.reward])
        self.frames, self.reduce, self.temperature = frames, reduce, temperature
        self.name, self.range = f"video_{self.reward.name}", self.reward.range
        self._parts: dict[str, Tensor] = {}
        self.surrogate = None if self.differentiable else self.make_surrogate()

    def make_surrogate(self) -> OnFrames | None:
        """The same frames, scored by the reward's surrogate."""
        if self.reward.surrogate is None:
            return None
        return OnFrames(self.reward.surrogate, self.frames, self.reduce, self.temperature)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        frames = images[:, sampled(images.shape[1], self.frames)]
        scores = per_frame(self.reward, frames, prompts)  # [B, F]
        self._parts = {name: value.view(scores.shape).mean(1) for name, value in super().parts().items()}
        if self.reduce == "mean":
            return scores.mean(1)
        if self.reduce == "minimum":
            return scores.amin(1)
        t = self.temperature
        return -t * ((-scores / t).logsumexp(1) - torch.tensor(scores.shape[1]).log())

    def parts(self) -> dict[str, Tensor]:
        return dict(self._parts)


class TemporalFlicker(Reward):
    """1 - the mean absolute difference of neighboring frames, in [0, 1], as VBench's temporal_flickering
    (arXiv 2311.17982), which counts in 255ths. A still picture scores 1: pair it with `motion`."""

    name = "temporal_flicker"
    takes = "videos"
    range = (0.8, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        _at_least_two(images, self.name)
        return 1 - images.float().diff(dim=1).abs().mean((1, 2, 3, 4))


class Motion(Reward):
    """Speed of what moves, in pixels a frame: sum of |dI/dt| |grad I| over sum of |grad I|^2.

    This is the normal flow of the brightness constancy equation (Horn and Schunck 1981), averaged with the
    weight |grad I|^2: low contrast alone does not lower it, as it lowers a mean frame difference. Frames are
    halved `halvings` times first, which lets it see moves of several pixels.
    """

    name = "motion"
    takes = "videos"
    range = (0.0, 8.0)

    def __init__(self, enough: float | None = None, halvings: int = 2):
        """enough: pixels a frame beyond which more motion earns nothing more; None for no such limit."""
        if halvings < 0 or (enough is not None and enough <= 0):
            raise UserError(
                f"Reward 'motion': enough must be above 0 and halvings at least 0, "
                f"not {enough} and {halvings}."
            )
        self.enough, self.halvings = enough, halvings

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        _at_least_two(images, self.name)
        frames = luminance(images)  # [B, F, H, W]
        for _ in range(self.halvings):
            if min(frames.shape[-2:]) >= 16:
                frames = F.avg_pool2d(frames, 2)
        slope = _derivative(frames)[..., 2:-2, :].square() + _derivative(frames.mT).mT[..., 2:-2].square()
        slope = (slope[:, 1:] + slope[:, :-1]) / 2  # at the two frames that the change is between
        change = frames.diff(dim=1)[..., 2:-2, 2:-2].abs()
        speed = (change * (slope + 1e-12).sqrt()).sum((1, 2, 3)) / (slope.sum((1, 2, 3)) + 1e-6)
        speed = speed * (images.shape[-1] / frames.shape[-1])
        return speed if self.enough is None else speed.clamp(max=self.enough)


class ClipConsistency(Reward):
    """Mean cosine of neighboring frames' CLIP embeddings, in [-1, 1], as the video editing papers' frame
    consistency (Esser et al. 2023, arXiv 2302.03011)."""

    name = "clip_consistency"
    takes = "videos"
    range = (0.8, 1.0)
    files = (CLIP_L,)

    def __init__(
        self,
        clip: str | os.PathLike | None = None,
        dtype: str | torch.dtype | None = None,
        checkpointing: bool = False,
    ):
        """clip: any CLIP's image tower; dtype, checkpointing: see ImageTower."""
        self.tower = ImageTower(read_clip(locate(CLIP_L, clip), CLIP_L), CLIP_L, dtype, checkpointing)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        _at_least_two(images, self.name)
        pixels = crop_shorter_side(images.flatten(0, 1), self.tower.size)
        features = F.normalize(self.tower.features(pixels), dim=-1).unflatten(0, images.shape[:2])
        return (features[:, 1:] * features[:, :-1]).sum(-1).mean(1)

    def to(self, device: torch.device | str) -> ClipConsistency:
        self.tower.to(device)
        return self


def sampled(length: int, frames: int | None) -> list[int]:
    """Indices of `frames` frames spread evenly over `length`, both ends included; one alone is the middle."""
    if frames is None or frames >= length:
        return list(range(length))
    if frames == 1:
        return [length // 2]
    return [round(i * (length - 1) / (frames - 1)) for i in range(frames)]


def _derivative(x: Tensor) -> Tensor:
    """Derivative along the last axis by five points, two fewer at each end."""
    return (8 * (x[..., 3:-1] - x[..., 1:-3]) - (x[..., 4:] - x[..., :-4])) / 12


def _at_least_two(videos: Tensor, name: str) -> None:
    if videos.shape[1] < 2:
        raise UserError(f"Reward {name!r} compares frames; this video has {videos.shape[1]}.")
