"""`rlr inspect`: what a model is, what is missing, and what training it takes."""

from __future__ import annotations

import shutil

import pytest
import torch
from marks import OLD
from safetensors.torch import save_file
from tiny_pipelines import write_pipeline

from rlr_core.diffusion.models.loading import load_model
from rlr_core.lora import attach
from rlr_core.training import memory
from rlr_core.training.peak import peak_bytes
from rlr_core.training.preflight import GIB

not_old = pytest.mark.skipif(OLD, reason="torch before 2.6 may not compute this without weights")
SIZE = memory.Size(16, 16)


def rows(out: str) -> dict[str, str]:
    return {line.split("  ")[0]: line.partition("  ")[2].strip() for line in out.splitlines() if "  " in line}


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return write_pipeline("flux", tmp_path_factory.mktemp("flux"))


@not_old
def test_a_folder_is_described(rlr, flux):
    code, out, _ = rlr("inspect", flux, "--width", 32, "--height", 16)
    found = rows(out)
    assert code == 0
    assert (found["family"], found["prediction"], found["missing"]) == ("flux", "flow", "nothing")
    assert found["guidance"] == "embedded in the network" and found["size"] == "256 x 256"
    assert found["transformer"].endswith("M parameters, F32")
    assert "To train it at 32 x 16, on a card of" in out
    assert all("about" in found[f"{card} GB"] for card in memory.CARDS)


@pytest.mark.slow
def test_a_checkpoint_file_is_described_without_its_weights(rlr, tmp_path):
    from tiny_sdxl_checkpoint import write_tiny_sdxl_checkpoint

    write_tiny_sdxl_checkpoint(tmp_path / "model.safetensors")
    code, out, _ = rlr("inspect", tmp_path / "model.safetensors", "--no-memory")
    assert code == 0 and rows(out)["family"] == "stable-diffusion-xl" and "card of" not in out
    with memory.folders.without_weights():
        assert memory.outline(tmp_path / "model.safetensors").unet.device.type == "meta"


def test_what_is_missing_is_said(rlr, flux, tmp_path):
    copy = shutil.copytree(flux, tmp_path / "copy")
    shutil.rmtree(copy / "text_encoder_2")
    code, _, err = rlr("inspect", copy)
    assert code == 2 and "is incomplete: no text_encoder_2/config.json" in err
    code, _, err = rlr("inspect", tmp_path / "nothing")
    assert code == 2 and "There is no file or folder" in err


def test_a_lora_is_described(rlr, tiny_sd_folder, tmp_path):
    adapter = attach(load_model(tiny_sd_folder, device="cpu"), rank=4, alpha=10)
    path = adapter.save(tmp_path / "lora.safetensors", metadata={"reward": "aesthetic", "steps": 7})
    found = rows(rlr("inspect", path)[1])
    assert (found["kind"], found["rank"], found["alpha"]) == ("LoRA", "4", "10")
    assert int(found["modules"]) == len(adapter.layers)
    assert (found["reward"], found["steps"]) == ("aesthetic", "7")


def test_a_file_that_cannot_be_trained_says_what_it_is(rlr, tmp_path):
    path = tmp_path / "flux_fp8.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn)}, path)
    code, _, err = rlr("inspect", path)
    assert code == 2 and "use it in ComfyUI" in err


def test_the_memory_model_finds_what_autograd_keeps_at_its_worst_moment():
    """Two layers in a row: at the worst moment both results, their input and one gradient live together."""
    one = 1000 * 1000 * 4
    x = torch.zeros(1000, 1000, device="meta", requires_grad=True)
    peak = peak_bytes(lambda: x.sin().cos())
    assert 2 * one <= peak <= 4.2 * one
    weight = torch.zeros(1000, 1000, device="meta")
    assert peak_bytes(lambda: x @ weight.t(), [weight]) < 3.2 * one


@pytest.mark.slow
@not_old
def test_checkpointing_and_fewer_bits_take_less(tiny_sd_folder):
    model = memory.outline(tiny_sd_folder)
    needs = memory.needs(model, SIZE)
    plain, saving = needs.plain, needs.checkpointed
    assert saving.step < plain.step and saving.picture < plain.picture
    sizes = [memory.weight_bytes(model, bits) for bits in (16, 8, 4)]
    assert sizes == sorted(sizes, reverse=True)
    assert memory.least(model, needs) < 0.1 * GIB
    assert all(fit is not None and fit.micro_batch == 4 for fit in memory.fits(model, needs).values())


@pytest.mark.slow
@not_old
def test_a_card_that_is_too_small_is_told_so(tiny_sd_folder, monkeypatch):
    monkeypatch.setattr(memory, "CARDS", (1, 8))
    model = memory.outline(tiny_sd_folder)
    found = memory.fits(model, memory.needs(model, SIZE))
    assert found[1] is None and found[8] is not None


def test_operations_on_equal_shapes_are_worked_out_once_and_counted_every_time():
    """Views of one storage are no new bytes, results that are kept are, known or not."""
    one = 1000 * 1000 * 4
    x = torch.zeros(1000, 1000, device="meta", requires_grad=True)

    def kept(count):
        return peak_bytes(
            lambda: torch.stack([(x.view(-1).view_as(x) + 1).exp().sum() for _ in range(count)])
        )

    assert kept(9) - kept(3) == pytest.approx(6 * one, rel=0.05)
