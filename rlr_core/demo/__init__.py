"""The built-in demo: a tiny text-to-image model, a reward and a judge, and the script that made them.

scenes.py   the world: pictures of one or two colored shapes, and their captions
judge.py    reads a picture's pixels and says whether it shows what its prompt says
reward.py   a small CLIP that scores the same, differentiably
build/      `python -m rlr_core.demo.build` trains everything in `weights/`
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def model_path() -> Path:
    """The folder of the demo's `StableDiffusionPipeline`."""
    return WEIGHTS / "model"


def reward_path() -> Path:
    """The folder of the demo reward's config and weights."""
    return WEIGHTS / "reward"
