"""What travels between the nodes: descriptions, not weights, so that nothing is held between two runs.

A description says the same to `rlr_core.TrainConfig`, so that a run's config.yaml runs on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Model:
    """RLR_MODEL: where a model is, and the LoRA that it wears."""

    path: str
    """A file, a folder, or 'demo'."""
    name: str
    dtype: str | None = None
    """Of the frozen weights; None chooses by device."""
    lora: str | None = None
    """A LoRA file."""


@dataclass(frozen=True)
class Prompts:
    """RLR_PROMPTS: what to train on, and what to hold out."""

    training: list[Any]
    """Texts, or lists of stages from coarse to fine."""
    held_out: list[Any] | None = None
    boundaries: list[float] | None = None
    """Where stages change, as shares of the sampling counted from the noise."""


@dataclass(frozen=True)
class Reward:
    """RLR_REWARD: a reward's name and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


class LoraWeights(dict):
    """LORA_MODEL, as stock nodes know it (tensors by name), with the file's metadata beside it."""

    metadata: dict[str, str]

    def __init__(self, tensors: dict[str, Any], metadata: dict[str, str]):
        super().__init__(tensors)
        self.metadata = metadata
