"""What training a model would need, told from its files: networks without weights, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from rlr_core.diffusion.models import folders
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.diffusion.models.loading import recognize
from rlr_core.diffusion.models.quiet import quiet_libraries
from rlr_core.errors import UserError
from rlr_core.lora.attach import attach
from rlr_core.training.preflight import GIB, Need

CARDS = (8, 12, 16, 24)
"""Sizes of cards that people have, in GiB."""
TAKEN = 1.0
"""GiB of a card that the driver and the desktop have."""
ADAPTER = 16
"""Bytes for every number of the adapter: itself, its gradient and two averages."""
PER_WEIGHT = {16: 2.0, 8: 1.0, 4: 0.5625}
"""Bytes for every frozen weight of a linear layer, by bits; the scales of small groups are in it."""


STEP = 1.02
"""How exactly the most bytes at a time are found."""


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


def need(model: DiffusionModel, size: Size, gradient_checkpointing: bool) -> tuple[Need, int]:
    """What one picture takes with its way back, and the adapter's bytes. model: an outline of one."""
    _check_torch()
    adapter = attach(model, RANK)
    model.gradient_checkpointing(gradient_checkpointing)
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
        step = peak_bytes(denoise, weights)
        picture = peak_bytes(lambda: model.decode(latents.clone().requires_grad_(True)), weights)
        return Need(step, picture), ADAPTER * sum(p.numel() for p in adapter.parameters())
    finally:
        model.gradient_checkpointing(False)
        adapter.detach()


def fits(model: DiffusionModel, size: Size) -> dict[int, Fit | None]:
    """For each of CARDS the first settings that fit, from the fastest on. model: an outline of one."""
    needs = {checkpointing: need(model, size, checkpointing) for checkpointing in (False, True)}
    ways = [(16, False), (16, True)] + ([(8, True), (4, True)] if model.quantizable else [])
    found: dict[int, Fit | None] = {}
    for card in CARDS:
        room = (card - TAKEN) * GIB
        found[card] = None
        for bits, checkpointing in ways:
            each, adapter = needs[checkpointing]
            weights = weight_bytes(model, bits)
            sizes = [size for size in (4, 2, 1) if weights + adapter + each.total(size, 1) <= room]
            if sizes:
                found[card] = Fit(bits, checkpointing, sizes[0], weights + adapter + each.total(sizes[0], 1))
                break
    return found


def least(model: DiffusionModel, size: Size) -> float:
    """Bytes that no settings get below."""
    each, adapter = need(model, size, True)
    return weight_bytes(model, 4 if model.quantizable else 16) + adapter + each.total(1, 1)


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


class Peak(TorchDispatchMode):
    """Bytes of all storages that are made inside: of those that live together, the most."""

    def __init__(self, weights: Iterable[Tensor]):
        """weights: what is there already, of which views will be made."""
        super().__init__()
        self.most = 0
        self._now = 0
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._weights:
            return
        reference = StorageWeakRef(storage)
        if reference.cdata in self._alive and not self._alive[reference.cdata][0].expired():
            return
        self._alive[reference.cdata] = (reference, storage.nbytes())
        self._now += storage.nbytes()
        if self._now > STEP * self.most:  # perhaps: some may be gone
            self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
            self._now = sum(size for _, size in self._alive.values())
            self.most = max(self.most, self._now)


@contextmanager
def flash_attention() -> Iterator[None]:
    """Attention that keeps no matrix of all pairs of tokens, as on a GPU; the meta device's own does."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, *args, **kwargs: _Attention.apply(
        query, key, value
    )
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def peak_bytes(function: Callable[[], Tensor], weights: Iterable[Tensor] = ()) -> int:
    """Most bytes at a time, beside the weights, of a forward and backward pass of what `function` computes on
    the meta device."""
    with Peak(weights) as peak, flash_attention():
        function().sum().backward()
    return round(STEP * peak.most)


def _decoders(model: DiffusionModel) -> list[nn.Module]:
    """What makes pixels of latents."""
    vae = getattr(model, "vae", None)
    return [vae] if isinstance(vae, nn.Module) else []
