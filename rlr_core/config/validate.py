"""Refuse settings that do not go together; what one setting may be stands at its field."""

from __future__ import annotations

from rlr_core.config.settings import TrainConfig
from rlr_core.errors import UserError

PYTHON = "python:"
"""In front of the name of a model or reward that was handed over as an object: a file cannot name it."""


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


def refuse_python_objects(config: TrainConfig) -> None:
    """Refuse a config whose model, reward or judge only a Python program can hand over."""
    for key, name in (
        ("model", config.model),
        ("reward", config.reward),
        ("evaluation.judge", config.evaluation.judge),
    ):
        if name is not None and name.startswith(PYTHON):
            raise UserError(
                f"{key} is {name!r}, which a Python program handed over as an object: run this config from "
                f"that program, or set {key} to something that has a name."
            )
