"""Shared by the tests: one torch thread, and the two small families."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory):
    """A Stable Diffusion folder with tiny random networks."""
    from tiny_sd import write_tiny_sd

    return write_tiny_sd(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(params=["stable-diffusion", "tiny-flow"])
def tiny_model(request, tiny_sd_folder):
    """A fresh tiny model of each family."""
    return load_tiny(request.param, tiny_sd_folder)


def load_tiny(family: str, folder):
    from tiny_flow import TinyFlow

    from rlr_core.diffusion.models.loading import load_model

    return TinyFlow() if family == "tiny-flow" else load_model(folder, device="cpu")
