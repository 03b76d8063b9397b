"""A prompt that carries more than its text: which words should be readable, which objects counted."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})


class PromptText(str):
    """A string with `metadata` for the rewards that know what to do with it; a plain string to all others.

    Equal to its text and hashing like it, whatever the metadata. What is made from it (a slice, a
    lowercase copy) is a plain string. Copies and pickles keep the metadata.
    """

    metadata: Mapping[str, Any]
    """Read-only, by name."""

    def __new__(cls, text: str, metadata: Mapping[str, Any] | None = None) -> PromptText:
        self = super().__new__(cls, text)
        self.metadata = MappingProxyType(dict(metadata or {}))
        return self

    def __reduce__(self) -> tuple[type, tuple[str, dict[str, Any]]]:
        return type(self), (str(self), dict(self.metadata))


def metadata_of(prompt: str) -> Mapping[str, Any]:
    """The prompt's metadata; empty for a plain string."""
    return getattr(prompt, "metadata", NOTHING)
