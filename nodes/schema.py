"""What the definitions of the nodes share: socket types, inputs made from settings, a check of what arrives.

ComfyUI checks a widget's value against its range only where it is not linked; `Node` checks all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from typing import Any

from comfy_api.latest import io

CATEGORY = "RLR"
RlrModel = io.Custom("RLR_MODEL")
RlrPrompts = io.Custom("RLR_PROMPTS")
RlrReward = io.Custom("RLR_REWARD")
RlrMethod = io.Custom("RLR_METHOD")
RlrSettings = io.Custom("RLR_SETTINGS")

LONGEST_TEXT = 2_000_000
"""Characters in one text input; thousands of prompts fit."""

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def opt(**keywords: Any) -> dict[str, Any]:
    """The keywords that this version's Schema knows; an unknown one would keep every node from appearing."""
    return {name: value for name, value in keywords.items() if name in _SCHEMA_FIELDS}


def workflow_of(node: type[io.ComfyNode]) -> str:
    """The id of the workflow in which a node runs, or '': a view is drawn into that one's node, and not into
    another's of the same number."""
    info = node.hidden.extra_pnginfo or {}
    return str((info.get("workflow") or {}).get("id") or "")


def rare(kind: type, name: str, **keywords: Any) -> io.Input:
    """An input that few need: folded away (`advanced`) in the versions of ComfyUI that can."""
    if "advanced" in inspect.signature(kind.__init__).parameters:
        keywords["advanced"] = True
    return kind(name, **keywords)


def setting_input(key: str, name: str | None = None, advanced: bool = False, **changes: Any) -> io.Input:
    """An input whose meaning is a setting; default, bounds, choices, step and tooltip come from its field.

    key: the setting, such as lora.rank. name: of the input; None takes the setting's last part.
    advanced: whether few need it. changes: what is otherwise in ComfyUI, such as what a graph may ask for.
    A setting that may be left open is 0 or empty when it is; `settings_from` reads it so.
    """
    from rlr_core.config.reference import meaning

    setting = _settings()[key]
    kind, options = _INPUTS[setting.types[0]], {}
    if setting.choices:
        kind, options = io.Combo.Input, {"options": list(setting.choices)}
    if kind in (io.Int.Input, io.Float.Input):
        options |= {"min": 0 if setting.nullable else setting.low, "max": setting.high, "step": setting.step}
    default = _INPUTS_OPEN[setting.types[0]] if setting.nullable else setting.default
    tooltip = meaning(setting, "empty" if setting.types[0] is str else "0")
    options = {"default": default, "tooltip": tooltip} | options | changes
    options = {option: value for option, value in options.items() if value is not None}
    name = name or key.rpartition(".")[2]
    return rare(kind, name, **options) if advanced else kind(name, **options)


def settings_from(inputs: dict[str, Any], table: dict[str, str]) -> dict[str, Any]:
    """Inputs as nested settings. table: input -> setting."""
    return nested(left_open({key: inputs[name] for name, key in table.items()}))


def left_open(values: dict[str, Any]) -> dict[str, Any]:
    """Setting -> value, with None for 0 or empty where a setting may be left open."""
    known = _settings()
    return {key: None if known[key].nullable and not value else value for key, value in values.items()}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Setting -> value, such as lora.rank -> 8, as the groups of a config."""
    data: dict[str, Any] = {}
    for key, value in values.items():
        group, _, last = key.rpartition(".")
        (data.setdefault(group, {}) if group else data)[last] = value
    return data


@functools.cache
def _settings() -> dict[str, Any]:
    from rlr_core.config import TrainConfig

    return {setting.key: setting for setting in TrainConfig.settings()}


_INPUTS = {bool: io.Boolean.Input, int: io.Int.Input, float: io.Float.Input, str: io.String.Input}
_INPUTS_OPEN = {int: 0, float: 0.0, str: ""}


class Node(io.ComfyNode):
    """A node whose `run` gets every input of its definition, in range, the left-out ones with defaults."""

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return cls.run(**checked(cls.define_schema().inputs or [], inputs))

    @classmethod
    def run(cls, **inputs: Any) -> io.NodeOutput:
        """What the node does."""
        raise NotImplementedError


def checked(definitions: list[io.Input], inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs by name, defaults filled in. Raises UserError for a value outside its definition."""
    from rlr_core.errors import UserError

    values = {}
    for definition in definitions:
        name = definition.id
        value = inputs.get(name, getattr(definition, "default", None))
        if value is None:
            if not definition.optional:
                raise UserError(f"Input {name!r} is missing.")
        elif isinstance(definition, io.Int.Input | io.Float.Input):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            whole = isinstance(definition, io.Float.Input) or (number and value == int(value))
            if not number or not whole or not definition.min <= value <= definition.max:
                raise UserError(
                    f"Input {name!r} is {value!r}; it must be between {definition.min} and {definition.max}."
                )
        elif isinstance(definition, io.String.Input):
            if not isinstance(value, str) or len(value) > LONGEST_TEXT:
                raise UserError(f"Input {name!r} must be text of at most {LONGEST_TEXT:,} characters.")
        elif isinstance(definition, io.Boolean.Input):
            value = bool(value)
        elif isinstance(definition, io.Combo.Input) and value not in definition.options:
            raise UserError(f"Input {name!r} is {str(value)[:200]!r}, which is not in its list.")
        values[name] = value
    return values
