"""How an adapter gets into torch modules by default: peft's LoRA layers in place of the layers they adapt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from rlr_core.diffusion.models.down_projection import DownProjection

ADAPTER = "rlr"
"""The adapter's name inside peft."""


def inject(
    networks: Mapping[str, nn.Module], layers: Mapping[str, tuple[int, float]], device: torch.device
) -> dict[str, nn.Module]:
    """Put a LoRA of given rank and alpha into each layer '<network>.<path>'; returns peft's layers by name,
    each network's sorted. Networks that may have been released from the device are brought back."""
    injected = {}
    for network, module in networks.items():
        paths = {
            name.removeprefix(f"{network}."): size
            for name, size in layers.items()
            if name.partition(".")[0] == network
        }
        if paths:
            module.to(device)
            injected |= {f"{network}.{path}": layer for path, layer in _inject(module, paths).items()}
    return injected


def _inject(network: nn.Module, modules: Mapping[str, tuple[int, float]]) -> dict[str, nn.Module]:
    """peft's layers at these paths of a network, by path, sorted."""
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


def eject(networks: Mapping[str, nn.Module]) -> None:
    """Put every adapted layer's own module back into its place."""
    for network in networks.values():
        adapted = [path for path, module in network.named_modules() if hasattr(module, "lora_A")]
        for path in adapted:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, network.get_submodule(path).base_layer)
        if hasattr(network, "peft_config"):
            del network.peft_config


def has_adapter(network: nn.Module) -> bool:
    """Whether there is a LoRA in the network."""
    return any(hasattr(module, "lora_A") for module in network.modules())
