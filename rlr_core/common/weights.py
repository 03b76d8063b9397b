"""What a model file is, found out from the names and shapes in its safetensors header."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlr_core.errors import UserError, nearest, one_line

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "float16": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}  # fmt: skip
"""Names of the types that weights may have, in models and rewards alike."""

Shapes = dict[str, tuple[int, ...]]
"""Tensor name -> shape."""

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

ALONE = "which needs its text encoder and VAE: give the diffusers folder, or use it in ComfyUI"
KINDS = {
    "sd1": "a Stable Diffusion 1.x checkpoint",
    "sd2": "a Stable Diffusion 2.x checkpoint",
    "inpainting": "a Stable Diffusion inpainting or editing checkpoint",
    "sdxl": "a Stable Diffusion XL checkpoint",
    "sd3": f"a Stable Diffusion 3 model in one file, {ALONE}",
    "flux": f"a Flux model in one file, {ALONE}",
    "flux2": f"the transformer of FLUX.2 alone, {ALONE}",
    "qwen-image": f"the transformer of Qwen-Image alone, {ALONE}",
    "z-image": f"the transformer of Z-Image alone, {ALONE}",
    "wan": f"the transformer of Wan alone, {ALONE}",
    "unet": "a UNet without its VAE and text encoder",
    "vae": "a VAE alone",
    "text encoder": "a text encoder alone",
    "lora": "a LoRA",
    "gguf": "a GGUF file, whose weights are quantized; use it in ComfyUI",
    "quantized": "a file of quantized weights (fp8, int8 or fewer bits); use it in ComfyUI",
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


QUANTIZED_TYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "U8")
"""Types, as safetensors files name them, of weights that stand for others."""


class Header(NamedTuple):
    """The header of a safetensors file."""

    shapes: Shapes
    metadata: dict[str, str]
    numbers: dict[str, int]
    """Type, as the file names it -> how many numbers are of it."""


def read_header(path: Path) -> Header:
    """Names, shapes and metadata of a safetensors file without its weights.

    Raises UserError if the file is no safetensors file or is cut off.
    """
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_header(path: Path, size: int, _changed: int) -> Header:
    if not path.is_file():
        raise UserError(f"{path} is not a file.")
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= 100_000_000:
            raise UserError(f"{path} is not a .safetensors file.")
        raw = file.read(length)
    if len(raw) < length:
        raise UserError(
            f"{path} is cut off: it has {size:,} bytes, its header alone {length:,}; download it again."
        )
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        shapes = {name: _shape(entry["shape"]) for name, entry in entries.items()}
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        numbers: Counter[str] = Counter()
        for name, entry in entries.items():
            numbers[str(entry["dtype"])] += math.prod(shapes[name])
        if not all(isinstance(text, str) for item in metadata.items() for text in item):
            raise ValueError("metadata that is not text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a .safetensors file.") from error
    if size < end:
        raise UserError(f"{path} is cut off: it has {size:,} of at least {end:,} bytes; download it again.")
    return Header(shapes, metadata, dict(numbers))


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
        raise UserError(f"{path} is damaged or not a .safetensors file ({one_line(error)}).") from error


def kind(path: Path) -> str:
    """What a model file is: a key of KINDS. Raises UserError for a damaged safetensors file."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return "pickle"
    if suffix == ".gguf" or _starts_with(path, b"GGUF"):
        return "gguf"
    if suffix != ".safetensors":
        return "unknown"
    header = read_header(path)
    found = kind_of(header.shapes)
    quantized = sum(header.numbers.get(name, 0) for name in QUANTIZED_TYPES)
    if found != "lora" and quantized > sum(header.numbers.values()) / 2:
        return "quantized"
    return found


def _starts_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def kind_of(shapes: Shapes) -> str:
    """What holds tensors of these names and shapes: a key of KINDS."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    if len(first) == 4:
        if any(name.startswith("conditioner.embedders.") for name in shapes):
            return "sdxl" if first[1] == 4 else "inpainting"
        if first[1] != 4:
            return "inpainting"
        has_vae = "first_stage_model.decoder.conv_in.weight" in shapes
        if has_vae and any(name.startswith("cond_stage_model.transformer.") for name in shapes):
            return "sd1"
        if has_vae and any(name.startswith("cond_stage_model.model.") for name in shapes):
            return "sd2"
        return "unet"
    for name, fragments in MARKS.items():
        if any(fragment in key for key in shapes for fragment in fragments):
            # a VAE in diffusers layout has down_blocks too, but a decoder beside them
            return "vae" if name == "unet" and "decoder.conv_in.weight" in shapes else name
    return "unknown"


MARKS = {
    "lora": (".lora_down.", ".lora_A.", ".lora.down.", ".lora_linear_layer.", ".hada_w1", ".lokr_w"),
    "sd3": ("joint_blocks.",),
    "flux2": ("double_stream_modulation_img.",),
    "qwen-image": ("txt_norm.weight",),
    "z-image": ("noise_refiner.",),
    "wan": ("blocks.0.cross_attn.q.", "condition_embedder."),
    "flux": ("double_blocks.", "single_transformer_blocks."),
    "unet": ("input_blocks.0.0.", "down_blocks.0.resnets."),
    "text encoder": (
        "text_model.encoder.",
        "transformer.resblocks.",
        "encoder.block.0.layer.0.SelfAttention.",
        "layers.0.self_attn.q_proj.",
    ),
    "vae": ("decoder.conv_in.", "decoder.conv1.", "decoder.middle.0."),
}
"""What names of tensors tell, in this order."""
