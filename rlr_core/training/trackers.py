"""TensorBoard or Weights & Biases, through accelerate, for those who ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlr_core.common.distributed import World
from rlr_core.config import TrainConfig
from rlr_core.errors import UserError

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""Tracker -> packages, one of which must be installed."""


class Tracker:
    """Sends every row of metrics.jsonl on."""

    def __init__(self, backend: Any):
        """backend: one of accelerate's trackers."""
        self.backend = backend

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row at its step."""
        values = {
            name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"
        }
        self.backend.log(values, step=row["step"])

    def close(self) -> None:
        """Nothing more is to come."""
        self.backend.finish()


def check_tracker(name: str) -> None:
    """Raise UserError where the package that a tracker needs is not installed."""
    if name != "none" and not any(map(find_spec, PACKAGES[name])):
        raise UserError(
            f"tracker is {name!r} and the package is not installed: pip install {name}, or set tracker=none."
        )


def make_tracker(config: TrainConfig, world: World) -> Tracker | None:
    """What config.tracker names, on the main process; None for 'none'. Its files lie in the run folder."""
    if config.tracker == "none" or not world.main:
        return None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder = Path(config.out).expanduser()
    where = {"logging_dir": str(folder)} if config.tracker == "tensorboard" else {"dir": str(folder)}
    backend = LOGGER_TYPE_TO_CLASS[config.tracker](run_name=folder.name, **where)
    start = getattr(backend, "start", None)  # older versions of accelerate start when they are made
    if start is not None:
        start()
    return Tracker(backend)
