"""Shared by the tests: one torch thread, and the small models."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY, load_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory):
    """A Stable Diffusion folder with tiny random networks."""
    from tiny_sd import write_tiny_sd

    return write_tiny_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(params=TINY)
def tiny_model(request, tiny_sd_folder):
    """A fresh tiny model of each kind."""
    return load_tiny(request.param, tiny_sd_folder)


@pytest.fixture
def sd(tiny_sd_folder):
    """A fresh tiny Stable Diffusion."""
    return load_tiny("stable-diffusion", tiny_sd_folder)
