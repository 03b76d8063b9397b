"""Gives a text encoder its grammar before it meets pictures: which shape, in which color, stands where.

Learned from pictures alone, what stands where in "a red circle above a blue square" comes last and slowly: an
encoder that only counts words explains most of a picture. From the captions themselves it takes a minute.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlr_core.demo.build.fitting import Log, optimizer_step, warmed_cosine
from rlr_core.demo.scenes import COLORS, KINDS, OFFSETS, Scene, caption, random_scene

BATCH = 128
PEAK_RATE = 2e-3
PLACES = ((0.0, 0.0), *OFFSETS.values())  # the center, then the places a relation names
CHOICES = len(COLORS) + 1, len(KINDS) + 1  # a color, or none; a kind, or none


def teach_grammar(
    encoder: nn.Module,
    feature: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    width: int,
    steps: int,
    seed: int,
) -> None:
    """Trains `encoder` so that a linear map, thrown away afterwards, reads off
    feature(tokens [B, 12]) -> [B, width] what stands at each of five places."""
    device = next(encoder.parameters()).device
    rng = random.Random(seed)
    head = nn.Linear(width, len(PLACES) * sum(CHOICES)).to(device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=1e-3)
    log = Log("text", steps, every=200)
    for step in range(steps):
        scenes = [random_scene(rng, pairs=0.9) for _ in range(BATCH)]
        target = torch.tensor([_standing(scene) for scene in scenes], device=device)  # [B, 5, 2]
        tokens = tokenize([caption(scene) for scene in scenes]).to(device)
        guess = head(feature(tokens)).unflatten(1, (len(PLACES), -1)).split(CHOICES, dim=2)
        loss = sum(F.cross_entropy(guess[i].transpose(1, 2), target[..., i]) for i in range(2))
        optimizer_step(optimizer, loss, warmed_cosine(step, steps, PEAK_RATE))
        if log.due(step):
            right = torch.stack([guess[i].argmax(2) == target[..., i] for i in range(2)]).all(0).all(1)
            log(step, loss=loss.detach(), right=right.float().mean())


def _standing(scene: Scene) -> list[tuple[int, int]]:
    """Color and kind (numbers; the last is none) at each of PLACES."""
    nothing = (len(COLORS), len(KINDS))
    at = {(0.0, 0.0): scene.first}
    if scene.second is not None:
        dx, dy = OFFSETS[scene.relation]
        at = {(dx, dy): scene.first, (-dx, -dy): scene.second}
    names = list(COLORS)
    return [(names.index(at[p].color), KINDS.index(at[p].kind)) if p in at else nothing for p in PLACES]
