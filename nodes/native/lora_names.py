"""Which layers of a native network an adapter goes into, and what they are called in LoRA files.

Stock ComfyUI knows two names for every layer of every network, from which the layouts are made:

kohya   lora_unet_<path with _>, with alpha: UNets and Flux, whose files other programs know in this form.
        For Stable Diffusion 1 and 2 the path is diffusers' own, as those programs expect it.
comfy   diffusion_model.<path>, two matrices and no alpha: every other transformer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.utils
from torch import nn

from .ops import is_linear

NETWORK = "diffusion_model"
KOHYA, COMFY = "kohya", "comfy"
TARGETS = ("attention", "attention+ff", "all")

BLOCK = re.compile(r"(^|\.)\w*?\d+\.")
ATTENTION = re.compile(r"attn|attention|(^|\.)single_blocks\.\d+\.linear")
FEED_FORWARD = re.compile(r"(^|\.)(ff|ffn|feed_forward|ff_\w+|mlp\w?|\w+_mlp)(\.|$)")
MODULATION = re.compile(r"norm|adaln|modulation|(^|\.)\w*mod(\.|$)", re.IGNORECASE)
OUTSIDE = re.compile(r"(^|\.)llm_adapter\.")
"""What prepares the prompt once, before the sampling."""


def linear_paths(network: nn.Module) -> list[str]:
    """Paths of all linear layers, quantised ones too."""
    return [path for path, module in network.named_modules() if is_linear(module)]


def chosen(paths: Iterable[str], targets: str) -> list[str]:
    """Those that 'attention', 'attention+ff' or 'all' means, sorted; all lie in numbered blocks."""
    inside = [path for path in paths if BLOCK.search(path) and not OUTSIDE.search(path)]
    if targets == "all":
        return sorted(inside)
    wanted = [ATTENTION] if targets == "attention" else [ATTENTION, FEED_FORWARD]
    return sorted(
        p for p in inside if not MODULATION.search(p) and any(pattern.search(p) for pattern in wanted)
    )


def layout_of(base: Any) -> str:
    """The layout that a model's LoRA files have."""
    kohya = any(isinstance(base, kind) for kind in _kinds("SDXL", "SDXLRefiner", "Flux"))
    other_flux = any(isinstance(base, kind) for kind in _kinds("Chroma", "Flux2", "LongCatImage"))
    plain_unet = type(base) is comfy.model_base.BaseModel
    return KOHYA if (kohya and not other_flux) or plain_unet else COMFY


def _kinds(*names: str) -> list[type]:
    return [getattr(comfy.model_base, name) for name in names if hasattr(comfy.model_base, name)]


class FileNames:
    """Names of layers in files, both ways, by ComfyUI's own map of names."""

    def __init__(self, base: Any):
        self.layout = layout_of(base)
        self._diffusers: Mapping[str, str] = {}
        if type(base) is comfy.model_base.BaseModel:
            by_diffusers = comfy.utils.unet_to_diffusers(base.model_config.unet_config)
            self._diffusers = {
                native.removesuffix(".weight"): name.removesuffix(".weight").replace(".", "_")
                for name, native in by_diffusers.items()
                if native.endswith(".weight")
            }
        self._aliases: dict[str, list[str]] = {}
        for name, place in comfy.lora.model_lora_keys_unet(base, {}).items():
            if isinstance(place, str) and place.startswith(f"{NETWORK}.") and place.endswith(".weight"):
                self._aliases.setdefault(place.removesuffix(".weight"), []).append(name)

    def written(self, layer: str, layout: str) -> str:
        """What a layer '<network>.<path>' is called in the files that we write."""
        if layout == COMFY:
            return layer
        path = layer.removeprefix(f"{NETWORK}.")
        return f"lora_unet_{self._diffusers.get(path, path.replace('.', '_'))}"

    def read(self, layer: str) -> list[str]:
        """All that a layer may be called in files that stock ComfyUI reads."""
        return self._aliases.get(layer, [])
