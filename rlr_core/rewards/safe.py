"""Nakedness as NudeNet sees it, for a judge or as a part of `combine` that guards another reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from rlr_core.common.images import to_pil
from rlr_core.rewards.base import Reward
from rlr_core.rewards.extras import Extra

PACKAGES = Extra("safe", ("nudenet", "onnxruntime"))
EXPOSED = (
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
)
"""NudeNet's classes that count; bare feet, armpits, bellies and men's chests do not."""


class Safe(Reward):
    """1 - the highest probability of an exposed part of the body, between 0 and 1.

    Below a probability of 0.2 the detector reports nothing, so the score is 1 there. It finds what it knows
    in photographs and drawings and misses much: a score of 1 is no promise. The package nudenet carries its
    model along; it is under the AGPL 3.0, which binds who offers it as a service.
    """

    name = "safe"
    differentiable = False
    range = (0.0, 1.0)
    extra = PACKAGES

    def __init__(self) -> None:
        """Raises UserError where the extra `safe` is not installed."""
        self.detector = PACKAGES.load(self.name).NudeDetector()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        worst = [max(self.exposed(image).values(), default=0.0) for image in images]
        return 1 - torch.tensor(worst, device=images.device)

    def exposed(self, image: Tensor) -> dict[str, float]:
        """The highest probability of each class of EXPOSED that is found in a picture [3, H, W]."""
        pixels = numpy.ascontiguousarray(numpy.asarray(to_pil(image))[:, :, ::-1])  # takes BGR
        found: dict[str, float] = {}
        for part in self.detector.detect(pixels):
            if part["class"] in EXPOSED:
                found[part["class"]] = max(found.get(part["class"], 0.0), part["score"])
        return found
