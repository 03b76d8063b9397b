"""Marks that more than one test file gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6)
opens_pickles = pytest.mark.skipif(OLD, reason="with torch before 2.6 no pickled weights are opened")


def quick(values: Iterable[Any], *quick_ones: Any) -> list[Any]:
    """Values for parametrize, tuples for several names; all but `quick_ones` are marked slow."""
    return [value if value in quick_ones else slow(value) for value in values]


def slow(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.slow)
