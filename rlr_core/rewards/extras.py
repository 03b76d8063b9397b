"""Packages that only some rewards need: whether they are installed, and what to do where not."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import NamedTuple

from rlr_core.errors import UserError


class Extra(NamedTuple):
    """An extra of pyproject.toml."""

    name: str
    packages: tuple[str, ...]
    """What it installs, by the names they have on PyPI and are imported by; the one that is used first."""

    def missing(self) -> str:
        """How to install what is not there; empty where all is."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"pip install {' '.join(absent)}" if absent else ""

    def load(self, reward: str) -> ModuleType:
        """The package that is used. Raises UserError, in the name of a reward, where one is missing."""
        if self.missing():
            raise UserError(f"Reward {reward!r} needs what is not installed: {self.missing()}.")
        try:
            return importlib.import_module(self.packages[0])
        except ImportError as error:
            raise UserError(f"Reward {reward!r} cannot use {self.packages[0]}: {error}.") from error
