"""A mark for tests that open pickled weights: with torch before 2.6 rlr_core refuses to."""

from __future__ import annotations

import pytest
import torch

OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6)
opens_pickles = pytest.mark.skipif(OLD, reason="opening pickled weights needs torch 2.6")
