"""Refuse a config that cannot run, as a whole and before anything is loaded.

What one setting may be stands at its field; here is what takes several, or the tables of methods and rewards.
"""

from __future__ import annotations

from rlr_core.config.settings import TrainConfig
from rlr_core.errors import UserError, nearest

PYTHON = "python:"
"""In front of the name of a reward that was an object of the caller's, not a row of the table."""


def check_config(config: TrainConfig) -> None:
    """Refuse, before anything is loaded, what cannot run. Raises UserError with the value and the way out."""
    from rlr_core.methods.table import METHODS
    from rlr_core.rewards import REWARDS

    method = config.method
    if method.name not in METHODS:
        raise UserError(
            f"Unknown method {method.name!r}; known: {', '.join(METHODS)}."
            f"{nearest(method.name, list(METHODS))}"
        )
    for role, name in (("reward", config.reward), ("judge", config.evaluation.judge)):
        if name is not None and not name.startswith(PYTHON) and name not in REWARDS:
            raise UserError(
                f"Unknown {role} {name!r}; known: {', '.join(REWARDS)}.{nearest(name, list(REWARDS))}"
            )
    check_values(config)
    METHODS[method.name].check(method, config.sampler, config.batch)


def check_values(config: TrainConfig) -> None:
    """Refuse settings that do not go together. Raises UserError with the values and the way out."""
    sampler, method = config.sampler, config.method
    if config.batch % config.samples_per_prompt:
        raise UserError(
            f"batch {config.batch} is not a multiple of samples_per_prompt {config.samples_per_prompt}."
        )
    if method.budget * sampler.steps < 1 - 1e-9:
        raise UserError(
            f"method.budget is {method.budget}; with {sampler.steps} sampler steps it must be between "
            f"{1 / sampler.steps:g} and 1."
        )
    if method.perturbations > config.batch:
        raise UserError(
            f"method.perturbations is {method.perturbations}; with batch {config.batch} it must be between 1 "
            f"and {config.batch}."
        )
    boundaries = sampler.stage_boundaries or []
    if any(not low < high for low, high in zip([0, *boundaries], [*boundaries, 1], strict=True)):
        raise UserError(f"sampler.stage_boundaries is {boundaries}; it must rise between 0 and 1.")


def refuse_python_rewards(config: TrainConfig) -> None:
    """Refuse a config whose reward or judge only a Python program can hand over."""
    for key, name in (("reward", config.reward), ("evaluation.judge", config.evaluation.judge)):
        if name is not None and name.startswith(PYTHON):
            raise UserError(
                f"{key} is {name!r}, which was a Python function; run it from Python, or name one of "
                "`rlr list rewards`."
            )
