"""Refuse a config that cannot run, as a whole and before anything is loaded."""

from __future__ import annotations

from rlr_core.config import TrainConfig
from rlr_core.config.validate import PYTHON, check_values
from rlr_core.errors import UserError, nearest
from rlr_core.methods import method_class
from rlr_core.rewards import ALIASES, REWARDS


def check_config(config: TrainConfig) -> None:
    """Raises UserError with the value that cannot work and the way out."""
    check_values(config)
    for role, name in (("reward", config.reward), ("judge", config.evaluation.judge)):
        if name is not None and name not in REWARDS and name not in ALIASES and not name.startswith(PYTHON):
            known = list(REWARDS)
            raise UserError(f"Unknown {role} {name!r}; known: {', '.join(known)}.{nearest(name, known)}")
    if config.tracker != "none":
        from rlr_core.training.trackers import check_tracker

        check_tracker(config.tracker)
    method_class(config.method.name).check(config.method, config.sampler, config.batch)
