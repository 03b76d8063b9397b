"""What the tests of the command line share; its fixtures are in conftest.py."""

from __future__ import annotations

SMALL = ["sampler.steps=3", "batch=4", "evaluation.samples=4", "evaluation.every=2", "save_every=1"]


def train(model, *more):
    return ["train", "--model", model, "--reward", "brightness", "--judge", "saturation", "--prompts",
            "prompts.txt", *SMALL, *more]  # fmt: skip


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
