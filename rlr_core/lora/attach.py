"""Put a LoRA adapter into a model's networks, switch it off and on, and take it out again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.diffusion.models.peft_layers import ADAPTER
from rlr_core.errors import UserError
from rlr_core.lora.formats import LoraModule, save_lora


class Adapter:
    """A LoRA in a model: y = W x + strength * (alpha / rank) * B A x, A and B float32, nothing else trains.

    Made by `attach`. A is [rank, in] ([rank, in, k, k] for a convolution), B is [out, rank].
    """

    def __init__(self, model: DiffusionModel, layers: dict[str, nn.Module]):
        """layers: the model's LoRA layers by name, as `DiffusionModel.inject` gives them."""
        self.model = model
        self.layers = layers
        self._strength = 1.0
        self.end_percent = 1.0
        """Share of the sampling, from the noise on, in which it acts; the base model does the rest."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """'<layer name>.lora_A.weight' and '....lora_B.weight' -> parameter, in the order of the layers."""
        return {
            f"{path}.{side}.weight": getattr(layer, side)[ADAPTER].weight
            for path, layer in self.layers.items()
            for side in ("lora_A", "lora_B")
        }

    def parameters(self) -> list[nn.Parameter]:
        """The parameters in the order of `named_parameters`."""
        return list(self.named_parameters().values())

    def modules(self) -> dict[str, LoraModule]:
        """Both matrices (float32 copies on the CPU) and alpha of each adapted module, by layer name."""
        state = self.state_dict()
        modules = {}
        for path, layer in self.layers.items():
            down, up = state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"]
            modules[path] = LoraModule(down, up, float(layer.lora_alpha[ADAPTER]))
        return modules

    def save(
        self, path: str | Path, layout: str | None = None, metadata: Mapping[str, object] | None = None
    ) -> Path:
        """Write a .safetensors file that ComfyUI and diffusers load; see `formats.save_lora`."""
        return save_lora(self, path, layout, metadata)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model inside the `with`: only flags change, gradients and parameters stay as they are."""
        before = [layer._disable_adapters for layer in self.layers.values()]
        for layer in self.layers.values():
            layer._disable_adapters = True  # peft's public switch would also clear requires_grad
        try:
            yield
        finally:
            for layer, flag in zip(self.layers.values(), before, strict=True):
                layer._disable_adapters = flag

    @property
    def strength(self) -> float:
        """Factor on the LoRA when sampling: 1 as trained, 0 the base model."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        for layer in self.layers.values():
            layer.set_scale(ADAPTER, value)
        self._strength = value

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the parameters on the CPU, float32, by name."""
        return {name: p.detach().cpu().clone() for name, p in self.named_parameters().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over parameters from `state_dict`. Raises UserError, naming them, if any is missing or odd."""
        parameters = self.named_parameters()
        problems = [f"{name} is missing" for name in parameters if name not in state]
        problems += [f"{name} is unknown" for name in state if name not in parameters]
        problems += [
            f"{name} has shape {list(state[name].shape)} instead of {list(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in state and state[name].shape != parameter.shape
        ]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(f"These weights are for another adapter: {'; '.join(problems[:3])}{more}.")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])

    def detach(self) -> None:
        """Take the adapter out: the model has its own layers again, in the same places."""
        self.model.eject()
        self.layers = {}


def attach(
    model: DiffusionModel,
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention",
    seed: int = 0,
    text_encoder: bool = False,
    denoisers: str = "all",
) -> Adapter:
    """Put a new LoRA into the model's denoisers; it changes nothing until trained (B = 0).

    alpha: None is `rank` (scale 1). targets: 'attention', 'attention+ff', 'all', or a list of module name
    endings. seed: A is drawn from it alone (uniform in +-1/sqrt(inputs), as torch's Linear). text_encoder:
    into the model's text encoders too; prompts must then be encoded after this. denoisers: of two, 'all',
    'high_noise' or 'low_noise'.
    A model holds one adapter at a time. Raises UserError if it has one, or if nothing matches.
    """
    if rank < 1:
        raise UserError(f"The LoRA rank must be at least 1, not {rank}.")
    if alpha is not None and not alpha > 0:
        raise UserError(f"The LoRA alpha must be positive, not {alpha}; leave it out to take the rank.")
    check_free(model)
    left_out = set(model.denoisers) - set(model.denoisers_for(denoisers))
    layers = model.lora_layers(targets, text_encoder)
    names = [layer for layer in layers if layer.partition(".")[0] not in left_out]
    adapter = attach_to(model, dict.fromkeys(names, (rank, float(rank if alpha is None else alpha))))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters().items():
            if name.endswith(".lora_B.weight"):
                parameter.zero_()
                continue
            bound = 1 / math.sqrt(parameter[0].numel())
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return adapter


def attach_to(model: DiffusionModel, layers: Mapping[str, tuple[int, float]]) -> Adapter:
    """Put a LoRA of given rank and alpha into each named layer; its weights are for the caller to fill."""
    check_free(model)
    return Adapter(model, model.inject(layers))


def check_free(model: DiffusionModel) -> None:
    """Raise UserError if there is an adapter in the model."""
    if model.has_adapter():
        raise UserError(f"{model.name} already has an adapter; detach() it first, or load the model again.")
