"""LoRA files of the headless families in stock ComfyUI: every module is patched as much, no key is lost, and
pictures would be the same as in diffusers."""

from __future__ import annotations

import pytest
import torch
from adapters import fill
from family_twins import CHANGES, NEEDED, give_weights, native_twin, twin_output
from native_settings import has_class
from pipeline_runs import SIZE, frames_of
from tiny_pipelines import write_pipeline

from rlr_core.diffusion.models.loading import load_model
from rlr_core.lora import attach

FAMILIES = ("stable-diffusion-xl", "stable-diffusion-3", "flux", "qwen-image", "z-image", "flux2", "wan")
CASES = [(family, targets) for family in FAMILIES for targets in ("attention", "all")]
CASES += [("animatediff", "attention+ff")]
PARTS = ((901.0, "lora.safetensors"), (401.0, "lora_low_noise.safetensors"))
"""A timestep for each of two denoisers, and the file of each."""


def write_tiny(family, folder):
    """A tiny pipeline that ComfyUI has a network for; skips where this version has none."""
    if family in NEEDED and not has_class(NEEDED[family]):
        pytest.skip(f"this ComfyUI has no {family}")
    with torch.inference_mode(False):
        return write_pipeline(family, folder, **CHANGES.get(family, {}))


def patched_by(twin, path):
    """The MODEL with a LoRA file, as the stock node loads it."""
    import comfy.sd
    import comfy.utils

    file = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(twin, None, file, 1.0, 0.0)[0]


@pytest.mark.parametrize("family, targets", CASES)
def test_stock_comfyui_patches_every_module_by_as_much_and_loses_no_key(
    pack, family, targets, tmp_path, caplog
):
    import comfy.lora

    with torch.inference_mode(False):
        folder = write_tiny(family, tmp_path / "model")
        adapter = fill(attach(load_model(folder, device="cpu"), rank=4, alpha=10, targets=targets))
        path = adapter.save(tmp_path / "lora.safetensors")
        modules = adapter.modules().values()
        expected = sum(float((m.alpha / m.rank * m.up.flatten(1) @ m.down.flatten(1)).square().sum())
                       for m in modules)  # fmt: skip
    caplog.clear()
    with torch.inference_mode():
        patched = patched_by(native_twin(family), path)
        weights = dict(patched.model.named_parameters())
        found = 0.0
        for key, patches in patched.patches.items():
            before = weights[key].detach().float()
            after = comfy.lora.calculate_weight(patches, before.clone(), key)
            found += float((after - before).square().sum())
    assert not [record for record in caplog.records if "not loaded" in record.message.lower()]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert sum(map(len, patched.patches.values())) == len(modules)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family, targets", [*CASES, ("wan-2.2-a14b", "all")])
def test_stock_comfyui_puts_out_what_diffusers_does_with_the_lora_and_without(
    pack, family, targets, tmp_path
):
    with torch.inference_mode(False):
        model = load_model(write_tiny(family, tmp_path / "model"), device="cpu")
        without_motion(model.networks[model.denoisers[0]])
        height, width = SIZE.values()
        shape = model.latent_shape(height, width, frames_of(family))
        latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        rows = model.encode_prompts(["a cat", "a dog"])  # of one length: no mask
    for denoiser, (time, name) in enumerate(PARTS[: len(model.denoisers)]):
        with torch.inference_mode():
            twin = native_twin(family)
            give_weights(family, twin, model.networks[model.denoisers[denoiser]])
            native_base = twin_output(family, twin, model, latents, time, rows)
        with torch.no_grad():
            base = model.denoise(latents, time, rows)
            adapter = fill(attach(model, rank=4, alpha=10, targets=targets), std=0.2)
            adapted = model.denoise(latents, time, rows)
            adapter.save(tmp_path / "lora.safetensors")
            adapter.detach()
        with torch.inference_mode():
            native = twin_output(family, patched_by(twin, tmp_path / name), model, latents, time, rows)
        effect = (adapted - base).norm()
        error, adapted_error = (native_base - base).norm() / base.norm(), (native - adapted).norm() / effect
        print(f"{family}, {targets}: base {error:.1e}; with the LoRA {adapted_error:.1e} of its effect, "
              f"{effect / base.norm():.2f} of the output")  # fmt: skip
        assert effect > 0.02 * base.norm()
        assert error < 1e-4
        assert adapted_error < 1e-3


def without_motion(network):
    """A video's pictures by themselves: stock ComfyUI has no layers between them."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".motion_modules." in name and ".proj_out." in name:
                parameter.zero_()
