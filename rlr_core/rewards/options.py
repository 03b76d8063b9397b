"""The options of a reward, checked against its constructor before it is built: names, then values."""

from __future__ import annotations

import collections.abc
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from rlr_core.errors import UserError, nearest


def check_options(label: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that `factory` has not, lacks, or has for another kind of value.

    label: what errors call the reward. Raises UserError, one sentence, with the nearest right name.
    """
    parameters = inspect.signature(factory).parameters
    names = list(parameters)
    for name in options:
        if name not in parameters:
            raise UserError(
                f"{label} has no option {name!r}; its options: {', '.join(names) or 'none'}."
                f"{nearest(str(name), names)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise UserError(f"{label} needs the option {name!r}; its options: {', '.join(names)}.")
    hints = _hints(factory)
    for name, value in options.items():
        hint = hints.get(name, Any)
        if not fits(value, hint):
            raise UserError(f"{label}: {name} must be {in_words(hint)}, not {value!r:.200}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation says; numbers must be finite."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if origin is typing.Literal:
        return any(value is allowed for allowed in inner)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(fits(item, inner[1]) for item in value.values())
    if origin is collections.abc.Sequence:
        is_list = isinstance(value, collections.abc.Sequence) and not isinstance(value, (str, bytes))
        return is_list and all(fits(item, inner[0]) for item in value)
    if hint in (int, float):
        number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True  # nothing to check it against


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    os.PathLike: "a path",
    type(None): "none",
}


def in_words(hint: Any) -> str:
    """An annotation in words: "a whole number or none"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, inner))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Mapping:
        return "a mapping of names to " + _plural(inner[1])
    if origin is collections.abc.Sequence:
        return "a list of " + _plural(inner[0])
    return f"a {getattr(hint, '__name__', hint)}"


def _plural(hint: Any) -> str:
    return {float: "numbers", str: "texts"}.get(hint, "values")


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the constructor's options; none for one whose annotations cannot be resolved."""
    factory = getattr(factory, "func", factory)  # of a functools.partial
    try:
        return typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
    except NameError:  # names that a caller's own reward imports for type checkers alone
        return {}
