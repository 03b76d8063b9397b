"""Shared by the tests: one torch thread, and the small models."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)

TINY = ("stable-diffusion", "tiny-flow", "text encoder too")
"""The two families, and one marked for adapters that go into its text encoder too."""


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory):
    """A Stable Diffusion folder with tiny random networks."""
    from tiny_sd import write_tiny_sd

    return write_tiny_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(params=TINY)
def tiny_model(request, tiny_sd_folder):
    """A fresh tiny model of each kind."""
    return load_tiny(request.param, tiny_sd_folder)


def load_tiny(family: str, folder):
    """A fresh one of TINY."""
    from tiny_flow import TinyFlow

    from rlr_core.diffusion.models.loading import load_model

    model = TinyFlow() if family == "tiny-flow" else load_model(folder, device="cpu")
    model.text_encoder_too = family == "text encoder too"
    return model
