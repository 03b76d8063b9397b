"""What the definitions of the nodes share: socket types, rare inputs, and a check of what arrives.

ComfyUI checks a widget's value against its range only where it is not linked; `Node` checks all of them.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

from comfy_api.latest import io

CATEGORY = "RLR"
RlrModel = io.Custom("RLR_MODEL")
RlrPrompts = io.Custom("RLR_PROMPTS")
RlrReward = io.Custom("RLR_REWARD")
RlrMethod = io.Custom("RLR_METHOD")

LONGEST_TEXT = 2_000_000
"""Characters in one text input; thousands of prompts fit."""

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def opt(**keywords: Any) -> dict[str, Any]:
    """The keywords that this version's Schema knows; an unknown one would keep every node from appearing."""
    return {name: value for name, value in keywords.items() if name in _SCHEMA_FIELDS}


def rare(kind: type, name: str, **keywords: Any) -> io.Input:
    """An input that few need: folded away (`advanced`) in the versions of ComfyUI that can."""
    if "advanced" in inspect.signature(kind.__init__).parameters:
        keywords["advanced"] = True
    return kind(name, **keywords)


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
