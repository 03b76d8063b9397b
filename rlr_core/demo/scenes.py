"""The demo's little world: scenes of one or two colored shapes, drawn by code, with captions that say what
they show.

A scene is 64 x 64, on light gray, anti-aliased: "a red circle", or two shapes in one of four relations,
"a red circle above a blue square". `draw` makes a batch of pictures, `caption` says what a scene shows, and
`training_prompts` / `held_out_prompts` divide the two-shape captions: reward fine-tuning is meant to see only
the first, and to be measured on the second.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlr_core.errors import UserError

SIZE = 64  # pixels, height and width
COLORS = {
    "red": (0.86, 0.15, 0.15),
    "green": (0.13, 0.62, 0.25),
    "blue": (0.14, 0.30, 0.86),
    "yellow": (0.96, 0.80, 0.12),
    "purple": (0.58, 0.18, 0.70),
    "black": (0.10, 0.10, 0.12),
}
BACKGROUND = (0.88, 0.88, 0.88)
KINDS = ("circle", "square", "triangle")
RELATIONS = ("above", "below", "left of", "right of")
OFFSETS = {"above": (0.0, -1.0), "below": (0.0, 1.0), "left of": (-1.0, 0.0), "right of": (1.0, 0.0)}


@dataclass(frozen=True)
class Thing:
    color: str
    kind: str

    def __str__(self) -> str:
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. With `second` and `relation`: `first` is <relation> `second`."""

    first: Thing
    relation: str | None = None
    second: Thing | None = None


THINGS = tuple(Thing(color, kind) for color in COLORS for kind in KINDS)


def caption(scene: Scene) -> str:
    """The sentence that says what the scene shows."""
    if scene.second is None:
        return f"a {scene.first}"
    return f"a {scene.first} {scene.relation} a {scene.second}"


def parse(prompt: str) -> Scene:
    """The scene a caption describes; the inverse of `caption`. Raises UserError for any other sentence."""
    words = prompt.lower().strip().rstrip(".").split()
    middle = words[3:-3]
    scene = None
    if len(words) == 3:
        scene = Scene(Thing(*words[1:]))
    elif len(words) >= 7 and " ".join(middle) in RELATIONS:
        scene = Scene(Thing(*words[1:3]), " ".join(middle), Thing(*words[-2:]))
    if scene is None or any(thing not in THINGS for thing in (scene.first, scene.second) if thing):
        raise UserError(
            f"Not a caption of the demo's world: {prompt!r}. Write 'a red circle' or 'a red circle above a "
            f"blue square', with colors {', '.join(COLORS)}, shapes {', '.join(KINDS)}, relations "
            f"{', '.join(RELATIONS)}."
        )
    return scene


def canonical(scene: Scene) -> Scene:
    """The same for all scenes that show the same picture: 'b below a' becomes 'a above b'."""
    opposite = {"below": "above", "right of": "left of"}.get(scene.relation)
    return scene if opposite is None else Scene(scene.second, opposite, scene.first)


def random_scene(rng: random.Random, pairs: float = 0.75) -> Scene:
    """A scene at random: two different shapes with probability `pairs`, otherwise one."""
    first = rng.choice(THINGS)
    if rng.random() >= pairs:
        return Scene(first)
    return Scene(first, rng.choice(RELATIONS), rng.choice([thing for thing in THINGS if thing != first]))


def swapped(scene: Scene, rng: random.Random) -> Scene:
    """A hard negative: the same scene with one color, one kind or the relation exchanged for another.

    The result never shows the same picture as `scene`."""
    parts = ["first.color", "first.kind"]
    if scene.second is not None:
        parts += ["second.color", "second.kind", "relation"]
    while True:
        part = rng.choice(parts)
        if part == "relation":
            wrong = replace(
                scene, relation=rng.choice([name for name in RELATIONS if name != scene.relation])
            )
        else:
            place, attribute = part.split(".")
            thing = getattr(scene, place)
            others = [
                value
                for value in (COLORS if attribute == "color" else KINDS)
                if value != getattr(thing, attribute)
            ]
            wrong = replace(scene, **{place: replace(thing, **{attribute: rng.choice(others)})})
        if wrong.first != wrong.second:
            return wrong


def muddled(scene: Scene, rng: random.Random) -> Scene:
    """What a careless writer says of two shapes: each in the other's place, or in the other's color.

    A single shape stays as it is; of two, the result is never what the picture shows."""
    a, b = scene.first, scene.second
    if b is None:
        return scene
    if a.color == b.color or rng.random() < 0.5:
        return replace(scene, first=b, second=a)
    return replace(scene, first=replace(a, color=b.color), second=replace(b, color=a.color))


def draw(scenes: list[Scene], rng: torch.Generator) -> Tensor:
    """Pictures of the scenes: [B, 3, 64, 64] float32 in [0, 1], with places, sizes and shades a little at
    random."""
    count = len(scenes)
    single = torch.tensor([scene.second is None for scene in scenes])
    kinds = torch.tensor(
        [[KINDS.index(t.kind) for t in (s.first, s.second or s.first)] for s in scenes]
    )  # [B, 2]
    colors = torch.tensor(
        [[COLORS[t.color] for t in (s.first, s.second or s.first)] for s in scenes]
    )  # [B, 2, 3]
    toward = torch.tensor([OFFSETS[s.relation or "above"] for s in scenes])  # [B, 2], from second to first
    side = torch.tensor([[1.0], [-1.0]])

    def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=rng)

    middle = SIZE / 2 + uniform((count, 1, 2), -2.5, 2.5)
    apart = uniform((count, 1, 1), 14.0, 15.5)
    centers = middle + apart * toward[:, None] * side + uniform((count, 2, 2), -1.0, 1.0)  # [B, 2, (x, y)]
    radius = uniform((count, 2), 9.0, 11.5)
    centers[single] = SIZE / 2 + uniform((int(single.sum()), 2, 2), -7.0, 7.0)
    radius[single] = uniform((int(single.sum()), 2), 11.0, 15.0)
    colors = (colors + uniform(tuple(colors.shape), -0.03, 0.03)).clamp(0, 1)

    alpha = coverage(kinds.flatten(), centers.flatten(0, 1), radius.flatten()).unflatten(0, (count, 2))
    alpha[single, 1] = 0
    image = torch.tensor(BACKGROUND)[None, :, None, None] + uniform((count, 1, 1, 1), -0.02, 0.02)
    image = image.expand(count, 3, SIZE, SIZE)
    for thing in range(2):
        a = alpha[:, thing, None]
        image = image * (1 - a) + colors[:, thing, :, None, None] * a
    return image


def coverage(kinds: Tensor, centers: Tensor, radius: Tensor) -> Tensor:
    """How much each of N shapes covers each pixel: kinds [N], centers [N, 2], radius [N] -> [N, 64, 64]."""
    axis = torch.arange(SIZE) + 0.5
    coverage = torch.zeros(len(kinds), SIZE, SIZE)
    for number, kind in enumerate(KINDS):
        these = kinds == number
        x = axis[None, None, :] - centers[these, 0, None, None]
        y = axis[None, :, None] - centers[these, 1, None, None]
        coverage[these] = (0.5 - _distance(kind, x, y, radius[these, None, None])).clamp(0, 1)
    return coverage


def _distance(kind: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Pixels from (x, y) to the outline of a shape of size r around (0, 0), negative inside."""
    if kind == "circle":
        return (x * x + y * y).sqrt() - r
    if kind == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.9 * r
    # An upright triangle: base at +0.85 r, apex at -1.05 r, half its base 1.05 r wide.
    slope = 1.05 / 1.9
    edge = (x.abs() - slope * (y + 1.05 * r)) / (1 + slope * slope) ** 0.5
    return torch.maximum(edge, y - 0.85 * r)


def all_scenes(pairs_only: bool = False) -> list[Scene]:
    """Every scene of the world, in a fixed order: 18 with one shape, 1,224 with two different ones."""
    ones = [] if pairs_only else [Scene(thing) for thing in THINGS]
    pairs = itertools.permutations(THINGS, 2)
    return ones + [Scene(a, relation, b) for a, b in pairs for relation in RELATIONS]


def _split(seed: int = 7, held_out: float = 0.2) -> tuple[list[str], list[str]]:
    """Two-shape captions divided by pair of things, so that no paraphrase ('b below a') crosses over."""
    pairs = list(itertools.combinations(range(len(THINGS)), 2))
    random.Random(seed).shuffle(pairs)
    kept = {frozenset((THINGS[a], THINGS[b])) for a, b in pairs[: int(held_out * len(pairs))]}
    sides: tuple[list[str], list[str]] = ([], [])
    for scene in all_scenes(pairs_only=True):
        sides[frozenset((scene.first, scene.second)) in kept].append(caption(scene))
    for side in sides:
        random.Random(seed).shuffle(side)
    return sides


def training_prompts() -> list[str]:
    """The two-shape captions for reward fine-tuning: 984, shuffled, always in the same order."""
    return _split()[0]


def held_out_prompts() -> list[str]:
    """The two-shape captions for measuring it: 240, shuffled, none of whose pairs of shapes is in
    `training_prompts`."""
    return _split()[1]
