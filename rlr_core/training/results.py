"""What a run folder tells without the model being loaded: how far the run is, its LoRA, its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlr_core.config import TrainConfig, load_config
from rlr_core.errors import UserError
from rlr_core.training.run_folder import CONFIG, LORA, STATE, read_metrics


@dataclass
class Results:
    """A run folder as it lies on the disk."""

    folder: Path
    config: TrainConfig
    metrics: list[dict[str, Any]]
    step: int
    """Updates that are written down."""
    reason: str
    """How it came to its end: 'finished', 'the judge dropped', 'interrupted', or what it waits for; '' while
    there is no LoRA."""
    lora_step: int
    """Updates that the LoRA has had; 0 while there is none."""

    @property
    def lora(self) -> Path:
        """The LoRA, or the LoRA so far."""
        return self.folder / LORA

    @property
    def waiting(self) -> bool:
        """Whether it ended because scores have to come from outside."""
        return self.reason not in ("", "finished", "the judge dropped", "interrupted")

    def done(self, config: TrainConfig) -> bool:
        """Whether the run has nothing left to do under `config`, which may ask for more steps than its own.

        A run that stopped because its judge dropped is done whatever the number of steps.
        """
        if self.config.fingerprint() != config.fingerprint():
            return False
        enough = self.reason == "finished" and self.lora_step >= config.steps
        return enough or self.reason == "the judge dropped"

    def summary(self) -> str:
        """A few lines for people: the state, the scores at the start and now, what it cost."""
        steps = self.config.steps
        lines = [f"{self.folder.name}: {self.step} of {steps} updates, {self.reason or 'not finished'}"]
        lines.append(f"model {Path(self.config.model).name}, method {self.config.method.name}")
        judge = self.config.evaluation.judge
        scored = [("reward/held_out", f"reward {self.config.reward} on held-out prompts")]
        scored += [("judge/mean", f"judge {judge}")] if judge else []
        for key, name in scored:
            values = [row[key] for row in self.metrics if row.get(key) is not None]
            if values:
                lines.append(f"{name}: {values[0]:.4g} before, {values[-1]:.4g} now")
        if self.metrics:
            last = self.metrics[-1]
            if distances := [row["distance"] for row in self.metrics if row.get("distance") is not None]:
                lines.append(
                    f"distance from the base model: {distances[-1]:.2f} (0: the same pictures, 1: as "
                    f"different as two seeds)"
                )
            lines.append(
                f"{last.get('time/seconds') or 0:.0f} seconds, "
                f"{(last.get('memory/peak_bytes') or 0) / 2**30:.1f} GiB at most"
            )
        if not self.lora.is_file():
            lines.append("no LoRA yet")
        return "\n".join(lines)


def read_results(folder: str | Path) -> Results:
    """Results of a run folder, alive or not. Raises UserError if it is none."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{str(folder)!r} is not a run folder: it holds no {CONFIG}.")
    metrics = read_metrics(folder)
    step = max((row["step"] for row in metrics), default=0)
    reason, lora_step = _end(folder)
    return Results(folder, load_config(folder / CONFIG), metrics, step, reason, lora_step)


def find_runs(base: str | Path, name: str, config: TrainConfig, most: int = 1000) -> list[Path]:
    """Folders `name`, `name_2`, `name_3`, ... in `base` that could go on under `config`, oldest first.

    The last item is the first free name of the series, where a new run can go.
    """
    folders = []
    for number in range(1, most + 1):
        folder = Path(base) / (name if number == 1 else f"{name}_{number}")
        if not folder.exists():
            return [*folders, folder]
        try:
            if load_config(folder / CONFIG).fingerprint() == config.fingerprint():
                folders.append(folder)
        except UserError:
            continue  # not a run, or one of another version: it stays as it is
    raise UserError(f"{str(base)!r} already holds {most} runs named {name!r}; choose another name.")


def decimated(rows: Sequence[Mapping[str, Any]], most: int, keep: str = "judge/mean") -> list[dict[str, Any]]:
    """At most about `most` rows: evenly taken, first and last kept, and those that have `keep`."""
    if len(rows) <= most:
        return [dict(row) for row in rows]
    scored = [i for i, row in enumerate(rows) if row.get(keep) is not None][-most // 2 :]
    stride = math.ceil(len(rows) / max(1, most - len(scored)))
    chosen = sorted({*range(0, len(rows), stride), *scored, len(rows) - 1})
    return [dict(rows[i]) for i in chosen]


def has_state(folder: str | Path) -> bool:
    """Whether there is a saved state to go on from."""
    return (Path(folder) / STATE).is_file()


def _end(folder: Path) -> tuple[str, int]:
    """What the LoRA's metadata says: how the run ended, and after how many updates."""
    from rlr_core.common.weights import read_header

    path = folder / LORA
    metadata = read_header(path).metadata if path.is_file() else {}
    steps = metadata.get("rlr_steps", "")
    return metadata.get("rlr_reason", ""), int(steps) if steps.isascii() and steps.isdigit() else 0
