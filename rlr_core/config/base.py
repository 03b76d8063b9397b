"""What every group of settings shares: fields that carry bounds and help, and errors of one sentence.

A setting is one field made by `setting`: its default, bounds and help text stand there, and the checks, the
node inputs, `rlr train --help-settings` and the page of settings come from it.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from rlr_core.errors import UserError, nearest

if TYPE_CHECKING:
    from typing_extensions import Self


def setting(
    default: Any,
    help: str,
    *,
    methods: tuple[str, ...] = (),
    unset: str = "",
    in_state: bool = True,
    step: float | None = None,
    ge: float | None = None,
    le: float | None = None,
) -> Any:
    """A field of Settings.

    default: the value, or a class of Settings for a group with its own defaults.
    help: what it means, in a sentence or two that a person who has read no paper understands.
    methods: the methods that read it; none named means all.
    unset: what None stands for.
    in_state: whether a saved state depends on it; False for what may change when a run goes on.
    step: how much a click on a node's arrow changes it.
    ge, le: the smallest and the largest value.
    """
    extra: dict[str, Any] = {"methods": methods, "unset": unset, "in_state": in_state, "step": step}
    if isinstance(default, type):
        return Field(default_factory=default, description=help, json_schema_extra=extra)
    return Field(default, description=help, json_schema_extra=extra, ge=ge, le=le)


@dataclass(frozen=True)
class Setting:
    """A field as its readers want it: errors, nodes, help."""

    key: str
    """Name with dots, such as lora.rank."""
    default: Any
    types: tuple[Any, ...]
    """What it may hold, without None."""
    nullable: bool
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    """The only values there are; empty where others pass too."""
    help: str
    methods: tuple[str, ...]
    unset: str
    in_state: bool
    step: float | None

    @property
    def bounds(self) -> str:
        """'at least 1', 'between 0 and 2', or ''."""
        low, high = self.low, self.high
        if low is not None and high is not None:
            return f"between {_number(low)} and {_number(high)}"
        if low is not None:
            return f"at least {_number(low)}"
        return "" if high is None else f"at most {_number(high)}"


class Settings(BaseModel):
    """A group of settings. What it is given is checked when it is made and when a field is set.

    Raises UserError for an unknown name, a wrong type, or a value out of bounds. Integers pass as floats,
    '3e-4' as a number, paths as text and tuples as lists; true and false are not numbers.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, validate_assignment=True, protected_namespaces=()
    )
    section: ClassVar[str] = ""
    """What the group is called in a run's config."""

    def __init__(self, /, **values: Any) -> None:
        self._refuse_unknown(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(_sentence(type(self), error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_unknown([name])
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise UserError(_sentence(type(self), error)) from None

    @classmethod
    def of(cls, value: Any) -> Self:
        """The group from a mapping; itself where it is one already."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"{cls.section} must hold settings of its own, not {shown(value)}.")
        cls._refuse_unknown(value)
        return cls(**value)

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, defaults and all."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}

    @classmethod
    def settings(cls) -> Iterator[Setting]:
        """Every setting of the group and of the groups in it, in order."""
        for name, field in cls.model_fields.items():
            kinds = _types(field.annotation)
            if is_group(kinds[0]):
                yield from kinds[0].settings()
                continue
            extra: Any = field.json_schema_extra
            yield Setting(
                key=cls._key(name),
                default=field.get_default(call_default_factory=True),
                types=tuple(type(kind.__args__[0]) if _is_choice(kind) else kind for kind in kinds),
                nullable=type(None) in typing.get_args(field.annotation),
                low=next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None),
                high=next((bound.le for bound in field.metadata if hasattr(bound, "le")), None),
                choices=next((typing.get_args(kind) for kind in kinds if _is_choice(kind)), ()),
                help=field.description or "",
                **extra,
            )

    @classmethod
    def names(cls) -> list[str]:
        """Names of all settings, with dots."""
        return [known.key for known in cls.settings()]

    @classmethod
    def _key(cls, name: Any) -> str:
        return f"{cls.section}.{name}" if cls.section else str(name)

    @classmethod
    def _refuse_unknown(cls, names: typing.Iterable[Any]) -> None:
        for name in names:
            if name not in cls.model_fields:
                groups = [name for name, field in cls.model_fields.items() if is_group(field.annotation)]
                raise UserError(unknown(cls._key(name), [*cls.names(), *groups]))

    @field_validator("*", mode="before")
    @classmethod
    def _accept(cls, value: Any, info: ValidationInfo) -> Any:
        return _adapted(value, cls.model_fields[info.field_name or ""].annotation)


def is_group(kind: Any) -> bool:
    """Whether a field's type is a group of settings."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def unknown(key: str, known: list[str]) -> str:
    """The sentence about a setting that does not exist."""
    inside = [name for name in known if name.endswith(f".{key}")]
    hint = f" Did you mean {inside[0]!r}?" if inside else nearest(key, known)
    return f"Unknown setting {shown(key)}.{hint or ' Known here: ' + ', '.join(known) + '.'}"


def shown(value: Any) -> str:
    """A value as it stands in a sentence: on one line, and not longer than one."""
    try:
        text = repr(value)
    except Exception:  # numbers of more digits than Python turns into text, objects of other people's classes
        text = f"a value of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 10**12 else f"{value:g}"


def _types(annotation: Any) -> tuple[Any, ...]:
    """What a field may hold, without None."""
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    options = typing.get_args(annotation) if union else (annotation,)
    return tuple(option for option in options if option is not type(None))


def _is_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _adapted(value: Any, annotation: Any) -> Any:
    """The value in the type that the field means, where nothing is lost; everything else as it is."""
    for kind in _types(annotation):
        origin = typing.get_origin(kind) or kind
        if is_group(kind):
            return kind.of(value)
        if origin is float and isinstance(value, (str, int)) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                continue
        if origin is list and isinstance(value, (list, tuple)):
            return [_adapted(item, (typing.get_args(kind) or (Any,))[0]) for item in value]
        if origin is dict and isinstance(value, Mapping):
            return dict(value)
        if origin in (str, Any) and isinstance(value, os.PathLike):
            return os.fspath(value)
    return value


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    list: "a list",
    dict: "settings",
}


def _sentence(group: type[Settings], error: ValidationError) -> str:
    """What is wrong with the first wrong value."""
    first = error.errors(include_url=False)[0]
    name, *inside = first["loc"]
    annotation, value = group.model_fields[str(name)].annotation, first["input"]
    known = next(each for each in group.settings() if each.key == group._key(name))
    if first["type"] == "literal_error":
        hint = nearest(value, known.choices) if isinstance(value, str) else ""
        return f"{known.key} is {shown(value)}; it must be one of {', '.join(known.choices)}.{hint}"
    if first["type"] in ("greater_than_equal", "less_than_equal"):
        return f"{known.key} is {shown(value)}; it must be {known.bounds}."
    if "[key]" in inside:
        return f"Names in {known.key} must be text, not {shown(value)}."
    if inside:  # an item of a list
        annotation = typing.get_args(_types(annotation)[0])[0]
    words = [_WORDS[typing.get_origin(kind) or kind] for kind in _types(annotation)]
    if type(None) in typing.get_args(annotation):
        words.append("null")
    return f"{known.key} must be {' or '.join(words)}, not {shown(value)}."


def _plain(value: Any) -> Any:
    """A value as YAML knows it: paths as text, tuples as lists, groups and prompts as mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
