"""A custom node that gives the tests' tiny models, as loaders would give real ones; for servers in tests."""

from __future__ import annotations

import shutil
from pathlib import Path


def install(base: Path) -> None:
    """Put the node `TinyModels` into a server's base directory."""
    here, folder = Path(__file__).resolve().parent, base / "custom_nodes/tiny_models"
    folder.mkdir()
    for part in ("native_parts", "native_models"):
        shutil.copy(here / f"native/{part}.py", folder)
    (folder / "__init__.py").write_text(NODE, encoding="utf-8")


NODE = """
from . import native_models


class TinyModels:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "LATENT")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (native_models.NAMES,)}}

    def make(self, name):
        made = native_models.build(name)
        return made.model, made.clip, made.vae, made.latent


NODE_CLASS_MAPPINGS = {"TinyModels": TinyModels}
"""
