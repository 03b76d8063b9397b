"""What a model file is, found out from the names and shapes in its safetensors header."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlr_core.errors import UserError, nearest

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "float16": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}  # fmt: skip
"""Names of the types that weights may have, in models and rewards alike."""

Shapes = dict[str, tuple[int, ...]]
"""Tensor name -> shape."""

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

KINDS = {
    "sd1": "a Stable Diffusion 1.x checkpoint",
    "sd2": "a Stable Diffusion 2.x checkpoint",
    "inpainting": "a Stable Diffusion inpainting or editing checkpoint",
    "sdxl": "a Stable Diffusion XL checkpoint",
    "sd3": "a Stable Diffusion 3 model",
    "flux": "a Flux model",
    "unet": "a UNet without its VAE and text encoder",
    "vae": "a VAE alone",
    "text encoder": "a text encoder alone",
    "lora": "a LoRA",
    "pickle": "a pickle file, which is never opened; convert it to .safetensors first",
    "unknown": "no model that is known here",
}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type that a name of DTYPES stands for. Raises UserError for any other name or type."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(
            f"Unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}.{nearest(str(dtype), list(DTYPES))}"
        )
    return DTYPES[dtype]


class Header(NamedTuple):
    """The header of a safetensors file."""

    shapes: Shapes
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Names, shapes and metadata of a safetensors file without its weights.

    Raises UserError if the file is no safetensors file or is cut off.
    """
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_header(path: Path, size: int, _changed: int) -> Header:
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= 100_000_000:
            raise UserError(f"{path} is not a .safetensors file.")
        raw = file.read(length)
    if len(raw) < length:
        raise UserError(f"{path} is cut off: it has {size:,} bytes, its header alone {length:,}.")
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        shapes = {name: _shape(entry["shape"]) for name, entry in entries.items()}
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if not all(isinstance(text, str) for item in metadata.items() for text in item):
            raise ValueError("metadata that is not text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a .safetensors file.") from error
    if size < end:
        raise UserError(f"{path} is cut off: it has {size:,} of at least {end:,} bytes; download it again.")
    return Header(shapes, metadata)


def _shape(sizes: Any) -> tuple[int, ...]:
    """The sizes of a tensor as the header has them. Raises ValueError for what are no sizes."""
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"{sizes!r} is no shape")
    return tuple(sizes)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, on the CPU. Raises UserError for a damaged one."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library raises its own, and what its parsers of headers and types do
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(f"{path} is damaged or not a .safetensors file ({reason}).") from error


def kind(path: Path) -> str:
    """What a model file is: a key of KINDS. Raises UserError for a damaged safetensors file."""
    if path.suffix.lower() in PICKLES:
        return "pickle"
    if path.suffix.lower() != ".safetensors":
        return "unknown"
    return kind_of(read_header(path).shapes)


def kind_of(shapes: Shapes) -> str:
    """What holds tensors of these names and shapes: a key of KINDS."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    if len(first) == 4:
        if any(name.startswith("conditioner.embedders.") for name in shapes):
            return "sdxl"
        if first[1] != 4:
            return "inpainting"
        has_vae = "first_stage_model.decoder.conv_in.weight" in shapes
        if has_vae and any(name.startswith("cond_stage_model.transformer.") for name in shapes):
            return "sd1"
        if has_vae and any(name.startswith("cond_stage_model.model.") for name in shapes):
            return "sd2"
        return "unet"
    marks = {
        "lora": (".lora_down.", ".lora_A.", ".lora.down.", ".lora_linear_layer.", ".hada_w1", ".lokr_w"),
        "sd3": ("joint_blocks.",),
        "flux": ("double_blocks.", "single_transformer_blocks."),
        "unet": ("input_blocks.0.0.", "down_blocks.0.resnets."),
        "text encoder": ("text_model.encoder.", "transformer.resblocks."),
        "vae": ("decoder.conv_in.",),
    }  # fmt: skip
    for name, fragments in marks.items():
        if any(fragment in key for key in shapes for fragment in fragments):
            # a VAE in diffusers layout has down_blocks too, but a decoder beside them
            return "vae" if name == "unet" and "decoder.conv_in.weight" in shapes else name
    return "unknown"
