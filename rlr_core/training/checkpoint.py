"""All that it takes to go on exactly: gathered after every whole update, written now and then, restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.training.run_folder import damaged_state
from rlr_core.training.setup import Parts

STATE_VERSION = 3
"""Raised when a state means something else than before, or draws other random numbers."""

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and JSON values."""


@dataclass
class Counters:
    """How far a run is."""

    step: int = 0
    """Updates done."""
    seconds: float = 0.0
    evaluations: tuple[int, int] = field(default=(0, 0))
    """Denoiser evaluations, forward and backward, of all processes, before this process began."""


def gather(parts: Parts, counters: Counters) -> State:
    """The state as of the last whole update. The same on every process."""
    evaluations, kept = parts.held_out.to_state()
    groups: Mapping[str, Mapping[str, Tensor]] = {
        "adapter": parts.adapter.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "method": parts.method.state_dict(),
        "reward": parts.reward.state_dict(),
        **evaluations,
    }
    tensors = {
        f"{group}/{name}": value.detach().clone()
        for group, part in groups.items()
        for name, value in part.items()
    }
    values = {
        "version": STATE_VERSION,
        "step": counters.step,
        "seconds": counters.seconds,
        "evaluations": total_evaluations(parts, counters),
        "settings": parts.config.setting_hashes(),
        **kept,
    }
    return tensors, values


def restore(parts: Parts, state: State, path: Path) -> Counters:
    """Put a state back. path: the file it lay in, for errors.

    Raises UserError for a state of another version, of other settings than config.yaml now holds, or one
    that does not fit what it is put into.
    """
    tensors, values = state
    if values.get("version") != STATE_VERSION:
        raise UserError(
            f"The state {str(path)!r} was saved by another version of rlr_core, which drew other random "
            f"numbers; it cannot go on. Start anew with another --out."
        )
    _refuse_changed(values.get("settings"), parts.config.setting_hashes(), path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    try:
        parts.adapter.load_state_dict(groups["adapter"])
        parts.optimizer.load_state_dict(groups["optimizer"])
        parts.method.load_state_dict(groups.get("method", {}))
        parts.reward.load_state_dict(groups.get("reward", {}))
        parts.held_out.from_state(groups, values)
        forward, backward = (int(count) for count in values["evaluations"])
        return Counters(int(values["step"]), float(values["seconds"]), (forward, backward))
    except UserError:
        raise
    except Exception as error:  # whatever a name, a shape or a type that is not there runs into
        raise damaged_state(path, error) from error


def _refuse_changed(theirs: Any, ours: Mapping[str, str], path: Path) -> None:
    """Somebody edited config.yaml after the state was saved."""
    if not isinstance(theirs, Mapping):
        raise damaged_state(path, KeyError("settings"))
    changed = [name for name in ours if theirs.get(name) != ours[name]]
    if changed:
        raise UserError(
            f"The settings were changed after the state {str(path)!r} was saved: {', '.join(changed)}. Put "
            "them back, or start anew with another --out."
        )


def total_evaluations(parts: Parts, counters: Counters) -> tuple[int, int]:
    """Denoiser evaluations of the whole run, over all processes: forward, backward."""
    counts = parts.chain.evaluations
    total = parts.world.sum(torch.tensor([counts.forward, counts.backward]))
    forward, backward = (total + torch.tensor(counters.evaluations)).tolist()
    return forward, backward
