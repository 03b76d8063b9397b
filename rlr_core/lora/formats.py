"""LoRA files: written whole or not at all, read strictly, in the layouts that the field uses.

kohya      lora_unet_<module path with _>.lora_down.weight, .lora_up.weight and .alpha: ComfyUI and diffusers
           load all of it, at the right strength. The text encoder's begin with lora_te_.
diffusers  unet.<module path>.lora_A.weight and .lora_B.weight, alpha in the metadata: for diffusers only.
           (ComfyUI knows no metadata and not all of these names: it would apply half of the file.) The text
           encoder's begin with text_encoder.
comfy      diffusion_model.<module path>.lora_A.weight and .lora_B.weight, without an alpha: what ComfyUI, and
           most programs, read of transformers.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlr_core.common.atomic import replacing
from rlr_core.errors import UserError
from rlr_core.lora import halves
from rlr_core.lora.peft_metadata import DIFFUSERS_METADATA, peft_alphas, peft_settings

if TYPE_CHECKING:
    from rlr_core.lora.attach import Adapter

KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up)\.weight|(?P<scaled>.+)\.alpha"
)
DOWN = ("lora_down", "lora_A", "lora.down")
TEXT_ENCODER = ("lora_te", "text_encoder")


class LoraModule(NamedTuple):
    """The change of one module: alpha / rank * up @ down."""

    down: Tensor  # [rank, in] or [rank, in, k, k]
    up: Tensor  # [out, rank] or [out, rank, 1, 1]
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass
class LoraFile:
    """What a LoRA file holds."""

    modules: dict[str, LoraModule]
    """By the module's name in the file, prefix included, sorted."""
    metadata: dict[str, str]


def save_lora(
    adapter: Adapter,
    path: str | Path,
    layout: str | None = None,
    metadata: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float32,
    way_out: str = "Choose another place.",
) -> Path:
    """Write the adapter as a .safetensors file and return its path; an existing file is replaced at once.

    layout: None is the family's first, which stock ComfyUI loads whole.
    metadata: what to remember about the run (method, reward, steps, ...), stored as 'rlr_<key>' strings.
    way_out: what to do when the disk is full, the end of that sentence.
    The alpha in the file is the trained one: strength 1 on loading is the adapter as it was trained.
    An adapter in two denoisers becomes two files; see `halves`.
    """
    layouts = adapter.model.lora_layouts
    layout = layout or layouts[0]
    if layout not in layouts:
        raise UserError(f"Unknown LoRA layout {layout!r}; use one of {', '.join(layouts)}.")
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"A LoRA is saved as .safetensors; give {path.with_suffix('.safetensors')} instead.")
    for half in halves.split(adapter.model, adapter.modules(), path):
        tensors, header = _contents(
            adapter, half.modules, layout, {**(metadata or {}), **half.metadata}, dtype
        )
        write_tensors(tensors, half.path, header, way_out)
    return path


def _contents(
    adapter: Adapter,
    modules: Mapping[str, LoraModule],
    layout: str,
    metadata: Mapping[str, object],
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    modules = _with_one_alpha(modules)
    if layout == "comfy":
        modules = {name: _without_alpha(module) for name, module in modules.items()}
    down, up = ("lora_down", "lora_up") if layout == "kohya" else ("lora_A", "lora_B")
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        key = adapter.model.lora_key(name, layout)
        tensors[f"{key}.{down}.weight"] = module.down.to(dtype).contiguous()
        tensors[f"{key}.{up}.weight"] = module.up.to(dtype).contiguous()
        if layout == "kohya":
            tensors[f"{key}.alpha"] = torch.tensor(module.alpha, dtype=torch.float32)
    header = _header(adapter, modules, metadata)
    if layout == "diffusers":
        header[DIFFUSERS_METADATA] = json.dumps(peft_settings(adapter.model, modules, _alpha(modules)))
    return tensors, header


def load_lora(path: str | Path) -> LoraFile:
    """Read a LoRA file in either layout.

    Raises UserError if it is no plain LoRA (LoHa, LoKr, DoRA, a checkpoint, ...) or is damaged.
    """
    from rlr_core.common.weights import KINDS, kind, read_header, read_tensors

    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no LoRA file {str(path)!r}.")
    what = kind(path)
    if what != "lora":
        raise UserError(f"{path} is {KINDS[what]}, not a LoRA.")
    metadata = read_header(path).metadata
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        match = KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{path} is not a plain LoRA: {key!r} is not understood, so nothing was loaded.")
        what = "alpha" if match["part"] is None else "down" if match["part"] in DOWN else "up"
        parts.setdefault(match["module"] or match["scaled"], {})[what] = tensor
    halves = [name for name, part in parts.items() if "down" not in part or "up" not in part]
    if halves:
        raise UserError(f"{path} is incomplete: {halves[0]!r} has only one of its two matrices.")
    alphas = peft_alphas(path, metadata, parts)
    modules = {}
    for name, part in sorted(parts.items()):
        down, up = part["down"], part["up"]
        if (
            down.ndim not in (2, 4)
            or up.ndim not in (2, 4)
            or up.shape[1] != down.shape[0]
            or not down.numel()
        ):
            shapes = f"{list(up.shape)} and {list(down.shape)}"
            raise UserError(f"{path} is no LoRA: the matrices of {name!r}, {shapes}, have no product.")
        alpha = alphas.get(name, float(down.shape[0]))  # without one anywhere, readers agree on scale 1
        if "alpha" in part:
            alpha = float(part["alpha"]) if part["alpha"].numel() == 1 else math.nan
        if not math.isfinite(alpha) or not (down.is_floating_point() and up.is_floating_point()):
            raise UserError(f"{path} is no LoRA: the numbers of {name!r} are not finite real ones.")
        modules[name] = LoraModule(part["down"], part["up"], alpha)
    return LoraFile(modules, metadata)


def is_text_encoder(name: str) -> bool:
    """Whether a module's name in a file belongs to a text encoder."""
    return name.startswith(TEXT_ENCODER)


def _with_one_alpha(modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    """The same changes, all with the most common alpha: diffusers misreads kohya files with several."""
    alpha = _alpha(modules)
    return {
        name: LoraModule(module.down, module.up * (module.alpha / alpha), alpha)
        for name, module in modules.items()
    }


def _without_alpha(module: LoraModule) -> LoraModule:
    """The same change with alpha = rank: readers of files without an alpha scale by 1."""
    return LoraModule(module.down, module.up * (module.alpha / module.rank), float(module.rank))


def _alpha(modules: Mapping[str, LoraModule]) -> float:
    """The most common alpha."""
    return Counter(module.alpha for module in modules.values()).most_common(1)[0][0]


# --- metadata ---


def acts(metadata: Mapping[str, str]) -> tuple[float, float]:
    """The part of the sampling in which a file's LoRA acts, as shares from the noise on: all of it, (0, 1),
    but for methods that train a part of the chain only."""
    try:
        start, end = float(metadata["rlr_start_percent"]), float(metadata["rlr_end_percent"])
    except (KeyError, ValueError):
        return 0.0, 1.0
    return (start, end) if 0 <= start < end <= 1 else (0.0, 1.0)


def _header(
    adapter: Adapter, modules: Mapping[str, LoraModule], metadata: Mapping[str, object]
) -> dict[str, str]:
    """What other programs show about a LoRA (kohya's ss_*, the modelspec standard), and our own notes."""
    ranks = {module.rank for module in modules.values()}
    header = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(_alpha(modules)),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{adapter.model.architecture}/lora",
        "modelspec.title": f"LoRA for {adapter.model.name}",
        "rlr_base": adapter.model.name,
    }
    return header | {f"rlr_{key}": str(value) for key, value in metadata.items()}


# --- writing ---


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str], way_out: str = "Choose another place."
) -> None:
    """A .safetensors file, with this metadata. Raises UserError where the disk refuses; way_out ends it.

    The same tensors and metadata make the same bytes.
    """
    from safetensors.torch import save

    with replacing(path, way_out) as temporary:
        temporary.write_bytes(_canonical(save(tensors, metadata=metadata)))


def _canonical(data: bytes) -> bytes:
    """A serialised .safetensors with its header sorted; the library writes metadata in random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
