"""Video decoders that work in chunks: the gradient is exact with one chunk's activations at a time."""

from __future__ import annotations

import pytest
import torch
from native_models import build
from native_parts import hunyuan_video_vae, video_vae
from native_runs import family, norm, slopes

FRAMES = 4  # of latents


def decoder_of(native, kind):
    """The family over a tiny Wan with one of these VAEs, and latents of some frames."""
    sockets = build("wan21")
    with torch.inference_mode():
        if kind == "hunyuan":
            sockets.vae = hunyuan_video_vae(16)
        elif kind == "wan 2.2":
            sockets.vae = video_vae(16, newer=True)
        sockets.latent = {"samples": torch.zeros(1, 16, FRAMES, 2, 2)}
    generator = torch.Generator().manual_seed(0)
    return family(native, sockets), torch.randn(1, 16, FRAMES, 2, 2, generator=generator).requires_grad_()


def value_of(model, latents):
    """A number that every pixel goes into."""
    pixels = model.decode(latents)
    weights = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    return (pixels * weights).double().square().mean()


def kept_by(model, latents):
    """Bytes that autograd holds of a decoding, weights and the latents aside."""
    known = {p.untyped_storage().data_ptr() for p in model.vae.first_stage_model.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value_of(model, latents)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("kind", ["wan 2.1", "wan 2.2", "hunyuan"])
def test_chunks_and_checkpoints_change_neither_pixels_nor_gradient(native, kind):
    model, latents = decoder_of(native, kind)
    with native.running(model):
        model.load_weights()
        plain = model.decode(latents).detach()
        (wanted,) = torch.autograd.grad(value_of(model, latents), latents)
        model.gradient_checkpointing(True)
        assert torch.equal(model.decode(latents), plain)
        (found,) = torch.autograd.grad(value_of(model, latents), latents)
        with torch.no_grad():
            assert torch.equal(model.decode(latents), plain)
        model.gradient_checkpointing(False)
        assert "forward" not in vars(model.vae.first_stage_model.decoder)
    assert norm([wanted]) > 0
    assert norm([found - wanted]) < 1e-5 * norm([wanted])


@pytest.mark.parametrize("kind", ["wan 2.1", "wan 2.2", "hunyuan"])
def test_the_gradient_through_chunks_is_that_of_finite_differences(native, kind):
    model, latents = decoder_of(native, kind)
    with native.running(model):
        model.load_weights()
        model.gradient_checkpointing(True)
        found, wanted = slopes(lambda: value_of(model, latents), [latents], step=0.02)
    assert found == pytest.approx(wanted, rel=2e-3)


def test_what_rests_in_ram_comes_back(native, part, monkeypatch):
    """As on a GPU: whatever a chunk keeps goes through the RAM."""
    moved = []

    def in_ram(tensors):
        moved.append(len(tensors))
        return torch.autograd.graph.save_on_cpu()

    model, latents = decoder_of(native, "wan 2.2")
    with native.running(model):
        model.load_weights()
        (wanted,) = torch.autograd.grad(value_of(model, latents), latents)
        monkeypatch.setattr(part("chunks"), "resting", in_ram)
        model.gradient_checkpointing(True)
        (found,) = torch.autograd.grad(value_of(model, latents), latents)
    assert len(moved) == FRAMES and moved[0] == 1 < moved[1]
    assert norm([found - wanted]) < 1e-5 * norm([wanted])


@pytest.mark.parametrize("kind", ["wan 2.1", "wan 2.2"])
def test_of_a_chunk_only_its_inputs_are_kept(native, kind):
    model, latents = decoder_of(native, kind)
    with native.running(model):
        model.load_weights()
        plain = kept_by(model, latents)
        model.gradient_checkpointing(True)
        chunked = kept_by(model, latents)
    print(f"{kind}, {FRAMES} latent frames: {plain / 1024:.0f} KiB, in chunks {chunked / 1024:.0f} KiB")
    assert chunked < plain / 2


def test_a_decoder_that_remembers_in_itself_is_left_alone(part):
    class Remembering(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.temporal_cache_state = {}

    assert part("checkpointing").keeps_state(torch.nn.Sequential(Remembering()))
    assert not part("checkpointing").keeps_state(torch.nn.Sequential(torch.nn.Linear(1, 1)))
