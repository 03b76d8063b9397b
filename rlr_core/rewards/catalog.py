"""The list of all rewards: what each is, its options, and whether its files are there."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from rlr_core.errors import UserError
from rlr_core.rewards import REWARDS, reward_class
from rlr_core.rewards.files import locate


class RewardRow(NamedTuple):
    """A line of `rlr list rewards`."""

    name: str
    summary: str
    ready: bool
    missing: str
    """The files and packages that are not there, by their usual names; empty when ready."""
    where: str
    """Where to get them and where they go."""
    options: str
    """The constructor's options, required ones first."""


def list_rewards() -> list[RewardRow]:
    """Every reward, whether its files are there, and if not, which are missing and where they go."""
    rows = []
    for name, entry in REWARDS.items():
        factory = reward_class(name)
        missing = []
        for needed in factory.files:
            try:
                locate(needed)
            except UserError:
                missing.append(needed)
        names = [needed.names[0] for needed in missing]
        advice = [needed.advice() for needed in missing]
        extra = factory.extra.missing() if factory.extra is not None else ""
        if extra:
            names.append(extra)
            advice.append(f"Packages: {extra}.")
        rows.append(
            RewardRow(name, entry.summary, not names, ", ".join(names), " ".join(advice), _options(factory))
        )
    return rows


def _options(factory: type) -> str:
    """The constructor's options as text: those without a default first, the others with theirs."""
    if factory.__init__ is object.__init__:
        return ""
    parameters = list(inspect.signature(factory).parameters.values())
    parameters.sort(key=lambda parameter: parameter.default is not parameter.empty)
    return ", ".join(
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
        for parameter in parameters
    )
