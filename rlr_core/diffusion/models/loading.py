"""Find out what a path holds and load it with the family that knows it."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.errors import UserError, nearest

FAMILIES: dict[str, str] = {
    "stable-diffusion": "rlr_core.diffusion.models.stable_diffusion:StableDiffusion",
}
"""Family name -> 'module:Class'. A new family is one new file and one line here."""

BUILT_IN = ("demo",)
