"""Put a LoRA adapter into a model's networks, switch it off and on, and take it out again (through peft)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from rlr_core.diffusion.models.base import DiffusionModel, has_adapter
from rlr_core.errors import UserError, nearest
from rlr_core.lora.down_projection import DownProjection
from rlr_core.lora.formats import LoraModule, save_lora
from rlr_core.lora.names import adaptable, join, networks, split

ADAPTER = "rlr"  # the adapter's name inside peft


class Adapter:
    """A LoRA in a model: y = W x + strength * (alpha / rank) * B A x, A and B float32, nothing else trains.

    Made by `attach`. A is [rank, in] ([rank, in, k, k] for a convolution), B is [out, rank].
    """

    def __init__(self, model: DiffusionModel, layers: dict[str, nn.Module]):
        """layers: peft's LoRA layers by name (`names.py`), the denoiser's first, each network's sorted."""
        self.model = model
        self.layers = layers
        self._strength = 1.0

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
        self, path: str | Path, layout: str = "kohya", metadata: Mapping[str, object] | None = None
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
        places = networks(self.model)
        for name, layer in self.layers.items():
            network, path = split(self.model, name)
            _set_module(places[network], path, layer.base_layer)
        self.layers = {}
        for network in places.values():
            if hasattr(network, "peft_config"):
                del network.peft_config


def attach(
    model: DiffusionModel,
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] = "attention",
    seed: int = 0,
    text_encoder: bool = False,
) -> Adapter:
    """Put a new LoRA into `model.denoiser`; it changes nothing until trained (B = 0).

    alpha: None is `rank` (scale 1). targets: 'attention', 'attention+ff', 'all', or a list of module name
    endings. seed: A is drawn from it alone (uniform in +-1/sqrt(inputs), as torch's Linear). text_encoder:
    into the model's text encoders too; prompts must then be encoded after this.
    A model holds one adapter at a time. Raises UserError if it has one, or if nothing matches.
    """
    if rank < 1:
        raise UserError(f"The LoRA rank must be at least 1, not {rank}.")
    if alpha is not None and not alpha > 0:
        raise UserError(f"The LoRA alpha must be positive, not {alpha}; leave it out to take the rank.")
    check_free(model)
    names = target_paths(model, targets, text_encoder)
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


def attach_to(model: DiffusionModel, modules: dict[str, tuple[int, float]]) -> Adapter:
    """Put a LoRA of given rank and alpha into each named layer; its weights are for the caller to fill."""
    check_free(model)
    parts: dict[str, dict[str, tuple[int, float]]] = {}
    for name, size in modules.items():
        network, path = split(model, name)
        parts.setdefault(network, {})[path] = size
    layers = {}
    for network, module in networks(model).items():
        if network in parts:
            if network:
                module.to(model.device)  # where it may have been released from
            injected = _inject(module, parts[network])
            layers |= {join(network, path): layer for path, layer in injected.items()}
    return Adapter(model, layers)


def _inject(network: nn.Module, modules: dict[str, tuple[int, float]]) -> dict[str, nn.Module]:
    """Put peft's LoRA layers into these paths of a network; returns them by path, sorted."""
    from peft import LoraConfig, inject_adapter_in_model

    common_rank, common_alpha = Counter(modules.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=common_rank,
        lora_alpha=common_alpha,
        target_modules="|".join(re.escape(path) for path in modules),
        # "^": peft also tries these patterns on the endings of longer paths
        rank_pattern={f"^{re.escape(p)}": r for p, (r, _) in modules.items() if r != common_rank},
        alpha_pattern={f"^{re.escape(p)}": a for p, (_, a) in modules.items() if a != common_alpha},
    )
    with torch.random.fork_rng(devices=[]):  # peft draws initial values that are not kept
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    layers = {path: network.get_submodule(path) for path in sorted(modules)}
    for layer in layers.values():
        for side in (layer.lora_A, layer.lora_B):
            side[ADAPTER].to(torch.float32).requires_grad_(True)
        if isinstance(layer.base_layer, nn.Linear) and layer.base_layer.weight.dtype != torch.float32:
            layer.lora_A[ADAPTER] = DownProjection.replacing(layer.lora_A[ADAPTER])
            layer.cast_input_dtype_enabled = False  # it casts for itself
    return layers


def target_paths(
    model: DiffusionModel, targets: str | Sequence[str], text_encoder: bool = False
) -> list[str]:
    """Names of the Linear and Conv2d modules that `targets` means: the denoiser's, sorted, and then the text
    encoders' if asked for. A list of endings may leave the denoiser out if text encoders have them.
    """
    if isinstance(targets, str) and targets not in model.lora_targets:
        known = list(model.lora_targets)
        raise UserError(
            f"Unknown LoRA targets {targets!r}; use {', '.join(map(repr, known))} or a list of module "
            f"names.{nearest(targets, known)}"
        )
    if text_encoder and not model.text_encoders:
        raise UserError(f"{model.name} has no text encoder that can be trained; leave out text_encoder.")
    found = {}
    for network, module in networks(model).items() if text_encoder else [("", model.denoiser)]:
        endings = targets
        if isinstance(targets, str):
            endings = (model.text_targets if network else model.lora_targets)[targets]
        found[network] = _matching(module, endings)
        if not found[network] and (network or not text_encoder):
            raise UserError(
                f"No layer of {model.name}{f' ({network})' if network else ''} is called "
                f"{' or '.join(endings)}; its linear layers are called, for example, "
                f"{', '.join(_examples(module))}."
            )
    return [join(network, path) for network, paths in found.items() for path in paths]


def _matching(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Paths that end in one of these names, sorted."""
    endings = tuple(f".{name}" for name in targets)
    return sorted(path for path in adaptable(network) if f".{path}".endswith(endings))


def _examples(network: nn.Module, count: int = 6) -> list[str]:
    """The most frequent last names of linear layers ('to_out.0' counts as one)."""
    linear = (path for path, module in network.named_modules() if isinstance(module, nn.Linear))
    names = Counter(re.sub(r"^.*\.(?=\D)", "", path) for path in linear)
    return [name for name, _ in names.most_common(count)]


def check_free(model: DiffusionModel) -> None:
    """Raise UserError if there is an adapter in the model."""
    if any(map(has_adapter, networks(model).values())):
        raise UserError(f"{model.name} already has an adapter; detach() it first, or load the model again.")


def _set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
