"""What a run leaves: the LoRA and what its file says, the curves, the pictures before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlr_core.errors import UserError
from rlr_core.evaluation.measures import Evaluation
from rlr_core.lora.attach import Adapter
from rlr_core.lora.formats import save_lora
from rlr_core.training.run_folder import BEST_LORA, LORA, RunFolder
from rlr_core.training.setup import Parts

FINISHED, JUDGE_DROPPED, INTERRUPTED = "finished", "the judge dropped", "interrupted"
"""How a run comes to an end; one that waits for scores says what it waits for."""


@dataclass
class TrainedLora:
    """A trained adapter, still in the model, and what its file says about it."""

    adapter: Adapter
    metadata: dict[str, str]

    def save(self, path: str | Path, layout: str | None = None) -> Path:
        """Write a LoRA file. layout: None is the family's own, which stock ComfyUI loads; or 'diffusers'."""
        if not self.adapter.layers:
            raise UserError("This LoRA is not in its model any more; its file is in the run folder.")
        return save_lora(self.adapter, path, layout, self.metadata)


@dataclass
class TrainResult:
    """What a run leaves: the LoRA, the run folder, the rows of metrics.jsonl, both evaluations."""

    lora: TrainedLora
    folder: Path
    metrics: list[dict[str, Any]]
    step: int
    reason: str
    """finished, 'the judge dropped', or what the run waits for."""
    before: Evaluation | None
    after: Evaluation | None

    @property
    def waiting(self) -> bool:
        """Whether it ended because scores have to come from outside."""
        return self.reason not in (FINISHED, JUDGE_DROPPED)


def write_lora(parts: Parts, folder: RunFolder | None, step: int, reason: str) -> TrainedLora:
    """Write the adapter as it stands, and how the run came to an end, to the run folder."""
    config = parts.config
    metadata = {
        "family": parts.model.family,
        "method": config.method.name,
        "reward": parts.reward.name,
        "steps": str(step),
        "config": config.fingerprint(),
        "reason": reason,
    }
    if parts.chain.base_steps:  # where a sampler is to use it, as shares of its steps from the noise on
        metadata["start_percent"] = "0"
        metadata["end_percent"] = f"{1 - parts.chain.base_steps / parts.chain.T:g}"
    if parts.world.main and folder is not None:
        save_lora(parts.adapter, folder.path / LORA, metadata=metadata, way_out=folder.way_out())
        _write_best(parts, folder, metadata)
    return TrainedLora(parts.adapter, metadata)


def _write_best(parts: Parts, folder: RunFolder, metadata: dict[str, str]) -> None:
    """The judge's best beside the LoRA, where it was kept; it is not known after how many updates."""
    if parts.held_out.best is None:
        return
    about = {key: value for key, value in metadata.items() if key != "steps"} | {
        "reason": "best by the judge"
    }
    own = parts.adapter.state_dict()
    parts.adapter.load_state_dict(parts.held_out.best[1])
    try:
        save_lora(parts.adapter, folder.path / BEST_LORA, metadata=about, way_out=folder.way_out())
    finally:
        parts.adapter.load_state_dict(own)


def keep_best_or_average(parts: Parts, reason: str) -> None:
    """Leave the adapter as it is to be used: the judge's best where the judge dropped, else the average."""
    held_out = parts.held_out
    if reason == JUDGE_DROPPED and held_out.best is not None:
        held_out.latest = held_out.best[0]
        parts.adapter.load_state_dict(held_out.best[1])
    else:
        parts.optimizer.keep_ema()


def write_pictures(parts: Parts, folder: RunFolder | None) -> list[dict[str, Any]]:
    """reward.png and before_after.png, where there is a folder. Returns the rows of its metrics."""
    if folder is None:
        return []
    from rlr_core.common.images import grid_frames
    from rlr_core.evaluation.plots import plot_before_after, plot_reward

    rows, held_out = folder.metrics(), parts.held_out
    judge = parts.judge.name if parts.judge is not None else f"{parts.reward.name}, held out"
    with folder.replacing("reward.png") as path:
        plot_reward(rows, path, parts.reward.name, judge)
    if held_out.before is not None and held_out.latest is not None:
        with folder.replacing("before_after.png") as path:
            plot_before_after(held_out.before, held_out.latest, path, held_out.judged_by)
        if held_out.before.images.ndim == 5:
            both = [e.images[: len(held_out.latest.images)] for e in (held_out.before, held_out.latest)]
            frames = grid_frames(torch.cat(both), columns=len(both[0]))  # a row before, a row after
            folder.save_animation("before_after.webp", frames)
    return rows
