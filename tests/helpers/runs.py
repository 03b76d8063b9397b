"""Small runs of the trainer, shared by the tests and run as a program by `accelerate launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny_flow import TinyFlow

from rlr_core.config import config_from_dict
from rlr_core.training.trainer import TrainResult, train

PROMPTS = ["a red circle", "a blue square", "a cat", "two dogs", "rain", "a tree"]


def redness(images, prompts):
    """A differentiable reward."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def redness_as_black_box(images, prompts):
    return redness(images, prompts).detach()


REWARDS = {"redness": redness, "black box": redness_as_black_box}


def small_config(out: Path, **changes) -> dict:
    """A run of seconds. changes: top-level fields; nested ones as dicts, merged."""
    settings = {
        "prompts": PROMPTS,
        "steps": 6,
        "batch": 8,
        "samples_per_prompt": 2,
        "micro_batch": 4,
        "decode_batch": 4,
        "save_every": 2,
        "keep_samples": 2,
        "out": str(out),
        "sampler": {"steps": 4, "eta": 1.0, "guidance": 2.0},
        "method": {"name": "adaptive"},
        "optimizer": {"learning_rate": 1e-2, "warmup": 1, "ema_decay": 0.5},
        "lora": {"rank": 2},
        "evaluation": {"samples": 8, "every": 3, "batch": 8},
    }
    for key, value in changes.items():
        settings[key] = settings[key] | value if isinstance(settings.get(key), dict) else value
    return settings


def run(settings: dict, reward: str = "redness", resume: bool = False, on_event=None) -> TrainResult:
    return train(TinyFlow(), REWARDS[reward], config_from_dict(settings), resume=resume, on_event=on_event)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's LoRA file."""
    from safetensors.torch import load_file

    return load_file(str(out / "lora.safetensors"))


def rows(out: Path) -> list[dict]:
    """A run's metrics without what no two runs share."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in found]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(json.loads(Path(sys.argv[1]).read_text()), *sys.argv[2:])
