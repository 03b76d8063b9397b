"""Fresh small models of each kind that adapters must work on."""

from __future__ import annotations

TINY = ("stable-diffusion", "tiny-flow", "text encoder too")
"""The two families, and one marked for adapters that go into its text encoder too."""


def load_tiny(kind: str, folder):
    """A fresh one of TINY; folder: what `write_tiny_sd` wrote."""
    from tiny_flow import TinyFlow

    from rlr_core.diffusion.models.loading import load_model

    model = TinyFlow() if kind == "tiny-flow" else load_model(folder, device="cpu")
    model.text_encoder_too = kind == "text encoder too"
    return model
