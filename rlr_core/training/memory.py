"""What training a model would need, told from its files: networks without weights, on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlr_core.diffusion.models import folders
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.diffusion.models.loading import recognize
from rlr_core.diffusion.models.quiet import quiet_libraries
from rlr_core.errors import UserError
from rlr_core.lora.attach import attach
from rlr_core.training.peak import peak_bytes
from rlr_core.training.preflight import GIB, Need

CARDS = (8, 12, 16, 24)
"""Sizes of cards that people have, in GiB."""
TAKEN = 1.0
"""GiB of a card that the driver and the desktop have."""
ADAPTER = 16
"""Bytes for every number of the adapter: itself, its gradient and two averages."""
PER_WEIGHT = {16: 2.0, 8: 1.0, 4: 0.5625}
"""Bytes for every frozen weight of a linear layer, by bits; the scales of small groups are in it."""


RANK = 8
"""Of the LoRA."""


class Size(NamedTuple):
    """Of a picture or video in pixels."""

    height: int
    width: int
    frames: int = 1

    def __str__(self) -> str:
        frames = "" if self.frames == 1 else f", {self.frames} frames"
        return f"{self.width} x {self.height}{frames}"


class Fit(NamedTuple):
    """Settings and what a run with them takes, in bytes, beside the reward."""

    bits: int
    gradient_checkpointing: bool
    micro_batch: int
    total: float

    def __str__(self) -> str:
        weights = "" if self.bits == 16 else f"dtype {self.bits}bit, "
        checkpointing = "on" if self.gradient_checkpointing else "off"
        return (
            f"{weights}micro_batch {self.micro_batch}, gradient_checkpointing {checkpointing}: "
            f"about {self.total / GIB:.1f} GiB beside the reward"
        )


def outline(path: Path) -> DiffusionModel:
    """The model in a folder or file, without weights. Raises UserError where a part of it is missing."""
    with folders.without_weights(), quiet_libraries():
        return recognize(path).load(path, torch.device("meta"), torch.bfloat16)


class Needs(NamedTuple):
    """What one picture takes with its way back, and the adapter's bytes."""

    plain: Need
    checkpointed: Need
    adapter: int


def needs(model: DiffusionModel, size: Size) -> Needs:
    """model: an outline of one."""
    _check_torch()
    adapter = attach(model, RANK)
    try:
        guided = 2 if model.guidance_kind == "cfg" else 1
        latents = torch.zeros(1, *model.latent_shape(*size), device=model.device)
        rows = model.blank_prompts(guided)
        sides = [1] * (latents.ndim - 1)

        def denoise() -> Tensor:
            leaf = latents.clone().requires_grad_(True)
            return model.denoise(leaf.repeat(guided, *sides), 500.0, rows)

        networks = [*model.networks.values(), *_decoders(model)]
        weights = [weight for network in networks for weight in network.parameters()]
        found = []
        for checkpointing in (False, True):
            model.gradient_checkpointing(checkpointing)
            step = peak_bytes(denoise, weights)
            picture = peak_bytes(lambda: model.decode(latents.clone().requires_grad_(True)), weights)
            found.append(Need(step, picture))
        return Needs(*found, adapter=ADAPTER * sum(p.numel() for p in adapter.parameters()))
    finally:
        model.gradient_checkpointing(False)
        adapter.detach()


def fits(model: DiffusionModel, needs: Needs) -> dict[int, Fit | None]:
    """For each of CARDS the first settings that fit, from the fastest on. model: an outline of one."""
    ways = [(16, False), (16, True)] + ([(8, True), (4, True)] if model.quantizable else [])
    found: dict[int, Fit | None] = {}
    for card in CARDS:
        room = (card - TAKEN) * GIB
        found[card] = None
        for bits, checkpointing in ways:
            each = needs.checkpointed if checkpointing else needs.plain
            fixed = weight_bytes(model, bits) + needs.adapter
            sizes = [size for size in (4, 2, 1) if fixed + each.total(size, 1) <= room]
            if sizes:
                found[card] = Fit(bits, checkpointing, sizes[0], fixed + each.total(sizes[0], 1))
                break
    return found


def least(model: DiffusionModel, needs: Needs) -> float:
    """Bytes that no settings get below."""
    weights = weight_bytes(model, 4 if model.quantizable else 16)
    return weights + needs.adapter + needs.checkpointed.total(1, 1)


def weight_bytes(model: DiffusionModel, bits: int) -> float:
    """Bytes of denoiser and decoder; text encoders have left by then. Two denoisers take turns in 16 bits."""
    sizes = []
    for name in model.denoisers:
        size = 0.0
        for module in model.networks[name].modules():
            per_weight = PER_WEIGHT[bits if isinstance(module, nn.Linear) else 16]
            size += sum(p.numel() for p in module.parameters(recurse=False)) * per_weight
        sizes.append(size)
    denoisers = max(sizes) if bits == 16 else sum(sizes)
    return denoisers + sum(p.numel() * p.element_size() for d in _decoders(model) for p in d.parameters())


def _check_torch() -> None:
    try:
        checkpoint(torch.sin, torch.zeros(1, device="meta", requires_grad=True), use_reentrant=False)
    except AttributeError as error:
        raise UserError(f"What training takes needs a newer PyTorch than {torch.__version__}.") from error


def _decoders(model: DiffusionModel) -> list[nn.Module]:
    """What makes pixels of latents."""
    vae = getattr(model, "vae", None)
    return [vae] if isinstance(vae, nn.Module) else []
