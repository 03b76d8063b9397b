"""What a run tells those who watch it: a progress bar, a node, a notebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    kind: start (data: steps, first_step), progress (phase: a key of PHASES; done,
    total), update (the row of metrics.jsonl), samples (step, images [N, 3, H, W] in [0, 1], prompts),
    warning (message), saved (step, path), done (step, reason).
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)


PHASES = {
    "prompts": "encoding prompts",
    "rollout": "sampling",
    "reward": "scoring",
    "backward": "learning",
    "evaluation": "evaluating",
}
"""Phase of a progress event -> what a person reads."""

OnEvent = Callable[[Event], None]
"""Receives every event. What it raises stops the run, which saves its state first."""
