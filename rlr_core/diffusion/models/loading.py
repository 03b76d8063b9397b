"""Find out what a path holds and load it with the family that knows it."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import torch

from rlr_core.common import weights
from rlr_core.common.weights import parse_dtype
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.diffusion.models.quiet import quiet_libraries
from rlr_core.errors import UserError, nearest

FAMILIES: dict[str, str | type[DiffusionModel]] = {
    "stable-diffusion": "rlr_core.diffusion.models.stable_diffusion:StableDiffusion",
    "stable-diffusion-xl": "rlr_core.diffusion.models.stable_diffusion_xl:StableDiffusionXL",
    "stable-diffusion-3": "rlr_core.diffusion.models.stable_diffusion_3:StableDiffusion3",
    "flux": "rlr_core.diffusion.models.flux:Flux",
    "qwen-image": "rlr_core.diffusion.models.qwen_image:QwenImage",
    "z-image": "rlr_core.diffusion.models.z_image:ZImage",
    "flux2": "rlr_core.diffusion.models.flux2:Flux2Klein",
    "wan": "rlr_core.diffusion.models.wan:Wan",
    "wan-2.2-a14b": "rlr_core.diffusion.models.wan_two_denoisers:WanTwoDenoisers",
    "animatediff": "rlr_core.diffusion.models.animatediff:AnimateDiff",
}
"""Family name -> 'module:Class' (or the class). A new family is one new file and one line here."""

BUILT_IN = ("demo",)
QUANTIZED = {"4bit": 4, "8bit": 8}
"""Names of types that hold frozen weights in fewer bits."""


def load_model(
    path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> DiffusionModel:
    """A frozen model, ready to sample, from a folder, a checkpoint file, or the name of the built-in one.

    path: 'demo', a diffusers folder, or a .safetensors checkpoint. device: None takes CUDA, else MPS, else
    the CPU. dtype of the frozen weights: None takes bfloat16 on CUDA (float16 where the card has no
    bfloat16), float32 elsewhere; '4bit' and '8bit' hold a transformer's weights so, by bitsandbytes, and
    compute in that type. Raises UserError, saying what the path is, when no family can load it.
    """
    device = find_device(device)
    bits = QUANTIZED.get(dtype) if isinstance(dtype, str) else None
    dtype = find_dtype(None if bits else dtype, device)
    built_in = str(path) in BUILT_IN
    model = _load(Path(_built_in(str(path)) if built_in else path).expanduser(), device, dtype, bits)
    model.source = str(path)
    if built_in:
        model.name = str(path)
    return model


def register_family(name: str, family: str | type[DiffusionModel]) -> None:
    """Make a further family known to `load_model`: its class, or 'module:Class' to import it on demand."""
    FAMILIES[name] = family


def find_device(device: str | torch.device | None) -> torch.device:
    """The device that is meant; None is the best one here. Raises UserError if it is not there."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"Unknown device {device!r}; use 'cuda', 'cuda:1', 'mps' or 'cpu'.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("Device 'cuda' was asked for, but this PyTorch sees no CUDA GPU; use 'cpu'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no GPU {device.index}; this machine has {torch.cuda.device_count()}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("Device 'mps' was asked for, but it is not available here; use 'cpu'.")
    return device


def find_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The type of the frozen weights that is meant; None is the best one for the device."""
    if dtype is None:
        if device.type != "cuda":
            return torch.float32
        has_bfloat16 = torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return parse_dtype(dtype)


def _load(path: Path, device: torch.device, dtype: torch.dtype, bits: int | None) -> DiffusionModel:
    family = recognize(path)
    with quiet_libraries():
        if bits is None:
            return family.load(path, device, dtype)
        if not family.quantizable:
            raise UserError(f"{path} cannot be held in {bits} bits; leave dtype out, or use bf16 or fp16.")
        check_quantization(device)
        return family.load(path, device, dtype, bits=bits)


def check_quantization(device: torch.device) -> None:
    """Raise UserError where weights cannot be held in 4 or 8 bits."""
    if device.type != "cuda":
        raise UserError(f"Weights in 4 or 8 bits need a CUDA GPU, not {device.type}; leave dtype out.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("Weights in 4 or 8 bits need bitsandbytes: `pip install 'bitsandbytes>=0.48'`.")


def recognize(path: str | Path) -> type[DiffusionModel]:
    """The family that can load a path, found out from headers alone, in milliseconds.

    Raises UserError, saying what the path is, when there is none.
    """
    path = Path(_built_in(str(path))) if str(path) in BUILT_IN else Path(path).expanduser()
    if not path.exists():
        hint = nearest(str(path), BUILT_IN)
        raise UserError(
            f"There is no model {str(path)!r}: give a diffusers folder, a .safetensors checkpoint, or "
            f"{' or '.join(map(repr, BUILT_IN))}.{hint}"
        )
    for name in FAMILIES:
        family = _family(name)
        if family.recognizes(path):
            return family
    raise UserError(f"{path} {_what_it_is(path)}. Families that can be trained: {', '.join(FAMILIES)}.")


def _family(name: str) -> type[DiffusionModel]:
    family = FAMILIES[name]
    if isinstance(family, str):
        module, class_name = family.split(":")
        family = getattr(importlib.import_module(module), class_name)
    return family


def _built_in(name: str) -> Path:
    return importlib.import_module(f"rlr_core.{name}").model_path()


def _what_it_is(path: Path) -> str:
    """The end of a sentence about a path that no family recognizes."""
    if path.is_dir():
        index = path / "model_index.json"
        if not index.is_file():
            return "is a folder without model_index.json, so it is no diffusers model"
        try:
            pipeline = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "has a model_index.json that cannot be read; copy the folder again"
        return f"is made for diffusers' {pipeline}, which no family here can load"
    return f"is {weights.KINDS[weights.kind(path)]}"
