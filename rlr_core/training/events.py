"""What a run tells those who watch it: a progress bar, a node, a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    kind: start (data: steps, first_step, pictures of an update, held_out pictures of an evaluation,
    evaluate_every updates), progress (phase: a key of PHASES; done of total pictures or prompts, 0 of 0 where
    nothing is counted), sampler_step (the same, and where the next pictures are, at_a_time of them: step of
    steps), update (the row of metrics.jsonl), samples (step, images [N, 3, H, W] in [0, 1], prompts), warning
    (message), saved (step, path), done (step, reason).
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)


PHASES = {
    "loading": "loading the model",
    "prompts": "encoding prompts",
    "memory": "checking that it fits into memory",
    "preparing": "finding out how to learn from the reward",
    "rollout": "sampling",
    "reward": "scoring",
    "backward": "learning",
    "evaluation": "evaluating",
    "saving": "saving",
}
"""Phase of a progress event -> what a person reads."""

OnEvent = Callable[[Event], None]
"""Receives every event. What it raises stops the run, which saves its state first."""


def in_words(data: Mapping[str, Any]) -> str:
    """What the run is at, from the data of a progress or a sampler_step event: 'sampling picture 5 of 16,
    step 3 of 20'."""
    phase, done, total = data["phase"], data["done"], data["total"]
    words = PHASES.get(phase) or str(phase)
    if not total:
        return words
    if phase == "prompts":
        return f"{words}, {done} of {total}"
    if "step" not in data:
        return f"{words}, {done} of {total} pictures"
    first, last = done + 1, done + data["at_a_time"]
    pictures = f"picture {first}" if last == first else f"pictures {first} to {last}"
    return f"{words} {pictures} of {total}, step {data['step']} of {data['steps']}"
