"""`rlr correct`: pictures in, a corrector out, pictures sampled through it, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from rlr_core.common.images import to_pil
from rlr_core.correction.corrector import load_corrector

FEW = ["sampler.steps=3", "sampler.guidance=1"]


@pytest.fixture
def photos(here):
    (here / "photos").mkdir()
    rng = torch.Generator().manual_seed(0)
    for number in range(24):
        to_pil(torch.rand(3, 20, 24, generator=rng)).save(here / "photos" / f"{number:02d}.png")
        (here / "photos" / f"{number:02d}.txt").write_text("a red circle")
    return here / "photos"


@pytest.mark.slow
def test_a_corrector_is_trained_and_sampled_through(rlr, here, photos, tiny_sd_folder):
    pytest.importorskip("torch_fidelity")  # of the extra `fidelity`
    train = ["correct", "--model", tiny_sd_folder, "--pictures", photos, "--updates", 20, "--samples", 20]
    code, output, error = rlr(*train, "--out", "made", *FEW)
    assert code == 0, error
    corrector, metadata = load_corrector(here / "made" / "corrector.safetensors")
    assert metadata["steps"] == "3" and metadata["guidance"] == "1"
    figures = json.loads((here / "made" / "report.json").read_text())
    assert figures["pictures"] == 24
    assert "state error" in output and "KID and its deviation, corrected" in figures
    assert {path.name for path in (here / "made").iterdir()} == {
        "corrector.safetensors",
        "report.json",
        "base.png",
        "corrected.png",
    }

    sample = ["correct", "--model", tiny_sd_folder, "--corrector", "made/corrector.safetensors"]
    code, output, error = rlr(*sample, "--prompt", "a cat", "--seeds", 1, 2, "--out", "pictures", *FEW)
    assert code == 0, error
    assert {path.name for path in (here / "pictures").iterdir()} == {"0000_seed1.png", "0001_seed2.png"}

    code, _, error = rlr(*sample, "--prompt", "a cat", "--out", "other", "sampler.steps=4", FEW[1])
    assert code == 2 and "made for steps 3 and this is 4" in error
    code, _, error = rlr(*sample, "--out", "other", *FEW)
    assert code == 2 and "--prompt" in error


def test_a_folder_without_pictures_is_named(rlr, here, tiny_sd_folder):
    (here / "empty").mkdir()
    code, _, error = rlr("correct", "--model", tiny_sd_folder, "--pictures", "empty", "--out", "made", *FEW)
    assert code == 2 and "empty" in error and "Traceback" not in error
    for flag, value in (("--samples", 1), ("--updates", 0), ("--seeds", -1)):
        code, _, error = rlr("correct", "--model", tiny_sd_folder, flag, value, "--pictures", "empty")
        assert code == 2 and str(value) in error and "Traceback" not in error
    assert not (here / "made").exists()
