"""What a run measures: the name of every metric with its meaning, and the row of an update."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

METRICS: dict[str, str] = {
    "step": "updates done",
    "reward/mean": "mean reward of the update's pictures",
    "reward/std": "its standard deviation",
    "gradient/norm": "norm of the update's gradient before clipping, of its first optimizer step",
    "gradient/norm_inner": "largest norm of its further optimizer steps, where a method takes several",
    "kl": "KL divergence to the base model over a trajectory, from a few of them; every tenth update, or "
    "each one where method.kl_weight holds the model near it",
    "learning_rate": "of the update",
    "evaluations/forward": "denoiser evaluations so far without a gradient; guidance counts twice",
    "evaluations/backward": "denoiser evaluations so far with a gradient",
    "updates/skipped": "optimizer steps so far whose gradient was not finite",
    "lambda/mean": "adaptive: share of back-propagation in the mixture, mean over the steps",
    "signal/gradient": "auto: 1 where it follows the reward's gradient, 0 where it compares pictures",
    "importance_ratio/error": "ddpo: largest distance of an importance ratio from 1",
    "importance_ratio/clipped": "ddpo: importance ratios that the clip cut off",
    "loss": "methods that learn from pictures: mean square error of the network's output on noised pictures",
    "distance/base": "methods that learn from pictures: mean square distance to the base model's output",
    "accepted": "graft and p_graft: share of the update's pictures that is trained on",
    "judge/mean": "mean score of the held-out judge, or of the reward where there is no judge",
    "judge/low": "lower end of its 95 % interval",
    "judge/high": "upper end of its 95 % interval",
    "reward/held_out": "mean reward of the held-out pictures",
    "reward/held_out_low": "lower end of its 95 % interval",
    "reward/held_out_high": "upper end of its 95 % interval",
    "distance": "how far the kept held-out pictures have moved from the base model's of the same seeds: 0 "
    "not at all, 1 as far as two of the base model's pictures of one prompt lie apart",
    "diversity": "distance between held-out pictures of one prompt; falls when all pictures look the same",
    "time/seconds": "since the start of the run, without the time between interruptions",
    "memory/peak_bytes": "most bytes held so far: on the GPU, or by the process",
}
"""Every column of metrics.jsonl. A reward made of parts adds reward/<part>, a method may add its own."""


def update_row(
    step: int,
    rewards: Tensor,
    norms: list[float],
    learning_rate: float,
    evaluations: tuple[int, int],
    skipped: int,
    parts: Mapping[str, float],
    measured: Mapping[str, float],
) -> dict[str, Any]:
    """The row of an update. rewards: of all processes; norms: of its optimizer steps; parts: of the reward;
    measured: by the method."""
    row: dict[str, Any] = {
        "step": step,
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()) if rewards.numel() > 1 else 0.0,
        "gradient/norm": norms[0],
        "kl": float("nan"),
        "learning_rate": learning_rate,
        "evaluations/forward": evaluations[0],
        "evaluations/backward": evaluations[1],
        "updates/skipped": skipped,
    }
    if len(norms) > 1:
        row["gradient/norm_inner"] = max(norms[1:])
    return row | {f"reward/{name}": mean for name, mean in parts.items()} | dict(measured)


def peak_bytes(device: torch.device) -> int:
    """Most bytes ever held: by PyTorch on the GPU, by the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
