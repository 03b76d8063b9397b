"""Measuring a model: same prompts and seeds before and after, scores with their uncertainty, diversity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.common.distributed import Alone, World
from rlr_core.common.random_streams import seeds
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Noise, rollout

if TYPE_CHECKING:
    from rlr_core.rewards.base import Reward

THUMBNAIL = 16  # pixels a side, at most, of the pictures that `diversity` compares


class ConfidenceInterval(NamedTuple):
    """A mean and its 95 % confidence interval (normal approximation); one value alone has no interval."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Tensor) -> ConfidenceInterval:
        """From independent values [N]."""
        values = values.double()
        mean = values.mean().item()
        if len(values) < 2:
            return cls(mean, None, None)
        half = 1.96 * values.std().item() / len(values) ** 0.5
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f}{interval}"


@dataclass
class Evaluation:
    """Scores of N pictures, each with its own prompt and seed."""

    prompts: list[str]
    seeds: list[int]
    scores: dict[str, Tensor]
    """[N] by reward, float32, on the CPU."""
    diversity: float | None
    """Root-mean-square distance between pictures of the same prompt, averaged over the pairs of a prompt and
    then over prompts: 0 where all are alike. Pixels in [0, 1], averaged down to at most 16 x 16, so that it
    sees layout and color and not texture. None where no prompt has two pictures."""
    images: Tensor
    """The first pictures, [K, 3, H, W] (or [K, F, 3, H, W]) float32 in [0, 1], on the CPU."""

    def estimate(self, reward: str) -> ConfidenceInterval:
        """Mean score and its interval."""
        return ConfidenceInterval.of(self.scores[reward])

    def to_state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and JSON values that `from_state` turns back into the same evaluation."""
        tensors = {"images": self.images} | {f"scores.{name}": values for name, values in self.scores.items()}
        return tensors, {"prompts": self.prompts, "seeds": self.seeds, "diversity": self.diversity}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], values: Mapping) -> Evaluation:
        """What `to_state` described."""
        scores = {name[7:]: scores for name, scores in tensors.items() if name.startswith("scores.")}
        return cls(values["prompts"], values["seeds"], scores, values["diversity"], tensors["images"])


def difference(before: Evaluation, after: Evaluation, reward: str) -> ConfidenceInterval:
    """How much higher `after` scores, picture by picture, and the interval of that.

    Same prompts and seeds make the pairs, so what prompts differ in drops out. Raises ValueError otherwise.
    """
    if before.prompts != after.prompts or before.seeds != after.seeds:
        raise ValueError("Only evaluations of the same prompts and seeds have a paired difference.")
    return ConfidenceInterval.of(after.scores[reward].double() - before.scores[reward].double())


@torch.no_grad()
def evaluate(
    chain: Chain,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    seeds: Sequence[int],
    conditioning_of: Callable[[list[int]], Conditioning],
    latent_shape: Sequence[int],
    *,
    batch: int = 8,
    device: torch.device | str = "cpu",
    keep: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    world: World | None = None,
) -> Evaluation:
    """Sample picture i with prompt i and seed i, decode and score, `batch` pictures at a time.

    rewards: by the name that their scores get. conditioning_of: the conditioning of the pictures of the given
    indices. latent_shape: of one latent. keep: how many pictures to hold on to, from the first. on_progress:
    called with the pictures done and their number. world: processes that share the pictures out among them.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"An evaluation takes a seed for every prompt, not {len(seeds)} for {len(prompts)}.")
    world = world or Alone()
    own = world.slice(len(prompts))
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    kept: list[Tensor] = []
    thumbnails: list[Tensor] = []
    for first in range(own.start, own.stop, batch):
        index = list(range(first, min(first + batch, own.stop)))
        noise = Noise([seeds[i] for i in index], latent_shape, device)
        latents = rollout(chain, noise, conditioning_of(index), keep=False).final
        images = chain.model.decode(latents).float().clamp(0, 1)
        for name, reward in rewards.items():
            scores[name].append(reward(images, [prompts[i] for i in index]).float().cpu())
        kept.append(images[: max(0, keep - first)].cpu())
        thumbnails.append(_thumbnails(images).cpu())
        if on_progress is not None:
            on_progress(index[-1] + 1 - own.start, len(own))
    return Evaluation(
        list(prompts),
        [int(seed) for seed in seeds],
        {name: _whole(world, values) for name, values in scores.items()},
        diversity(_whole(world, thumbnails), prompts),
        _whole(world, kept),
    )


def _whole(world: World, parts: list[Tensor]) -> Tensor:
    """What all processes have, in order: each one's parts [n, ...] in a row."""
    pieces = world.gather(torch.cat(parts) if parts else None)
    return torch.cat([piece for piece in pieces if piece is not None])


def plan(prompts: int, samples: int, seed: int) -> tuple[list[int], list[int]]:
    """Which prompt, by index, and which seed each of `samples` pictures takes.

    Every prompt gets two pictures, so that there is a diversity to measure, or more where prompts are few;
    where they are many, some are taken, evenly from the list. The first pictures are of different prompts.
    """
    chosen = min(prompts, max(1, samples // 2))
    index = [(i % chosen) * prompts // chosen for i in range(samples)]
    draws = seeds(seed, "evaluation", samples)
    return index, [int(draw >> np.uint64(1)) for draw in draws]


def diversity(images: Tensor, prompts: Sequence[str]) -> float | None:
    """`Evaluation.diversity` of pictures [N, ...] that share a size."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    flat = images.flatten(1).double()
    means = [
        F.pdist(flat[rows]).mean().item() / flat.shape[1] ** 0.5 for rows in groups.values() if len(rows) > 1
    ]
    return sum(means) / len(means) if means else None


def distance(before: Evaluation, after: Evaluation) -> float | None:
    """How far the kept pictures have moved, in units of what lies between two seeds: 0 where they are the
    same, 1 where a picture is as far from what it was as `before`'s pictures of one prompt are apart.

    before, after: of the same prompts and seeds. None where `before` has no diversity to compare with.
    """
    count = min(len(before.images), len(after.images))
    if not before.diversity or not count:
        return None
    moved = _thumbnails(after.images[:count]) - _thumbnails(before.images[:count])
    per_picture = moved.double().flatten(1).square().mean(1).sqrt()
    return per_picture.mean().item() / before.diversity


def _thumbnails(images: Tensor) -> Tensor:
    """Pictures [B, ..., H, W] averaged down to [B, C, h, w], h and w at most THUMBNAIL."""
    flat = images.flatten(1, -3)
    height, width = (min(THUMBNAIL, side) for side in flat.shape[-2:])
    return F.adaptive_avg_pool2d(flat, (height, width))
