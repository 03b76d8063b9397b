"""TensorBoard or Weights & Biases, through accelerate, for those who ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlr_core.common.distributed import World
from rlr_core.config import TrainConfig
from rlr_core.errors import UserError


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


def make_tracker(config: TrainConfig, world: World) -> Tracker | None:
    """What config.tracker names, on the main process; None for 'none'. Its files lie in the run folder.

    Raises UserError where the package is not installed.
    """
    if config.tracker == "none" or not world.main:
        return None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if not available[config.tracker]():
        raise UserError(
            f"tracker is {config.tracker!r} and the package is not installed: pip install "
            f"{config.tracker}, or set tracker=none."
        )
    folder = Path(config.out).expanduser()
    kind = LOGGER_TYPE_TO_CLASS[config.tracker]
    where = {"logging_dir": str(folder)} if config.tracker == "tensorboard" else {"dir": str(folder)}
    return Tracker(kind(run_name=folder.name, **where))
