"""A model in a folder as diffusers writes it: whole or not at all, without network and without pickles."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlr_core.common import weights as weight_files
from rlr_core.diffusion.models import descriptions
from rlr_core.diffusion.models.clip_text_encoder import clip_text_encoder
from rlr_core.errors import UserError

INDEX = "model_index.json"
OWN_NAMES = ("diffusion_pytorch_model", "model")
"""Beginnings of the names of the files that diffusers and transformers write."""
GIB = 2**30
LONGEST_PROMPT = 2**12
"""Tokens that no CLIP text encoder reads."""

_outline: ContextVar[bool] = ContextVar("outline", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks that are loaded inside have no weights: they are on the meta device, as described."""
    token = _outline.set(True)
    try:
        yield
    finally:
        _outline.reset(token)


def outline(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module | None:
    """The network that `make` makes, on the meta device; None where weights are wanted."""
    if not _outline.get():
        return None
    from accelerate import init_empty_weights

    with init_empty_weights():
        return make().to("meta", dtype)


def pipeline_class(folder: Path) -> str | None:
    """The pipeline class that model_index.json names; None where there is none."""
    return index(folder).get("_class_name")


def index(folder: Path) -> dict[str, Any]:
    """model_index.json; empty where there is none that can be read."""
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def part_class(folder: Path, part: str) -> str | None:
    """The class that model_index.json names for a part; None where it names none."""
    entry = index(folder).get(part)
    named = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    return entry[1] if named else None


def check_parts(folder: Path, networks: Iterable[str], tokenizers: Iterable[str]) -> None:
    """Raise UserError if a part that is needed has no description."""
    needed = dict.fromkeys(networks, "config.json")
    needed |= dict.fromkeys(tokenizers, "tokenizer_config.json")
    needed |= {"scheduler": "scheduler_config.json"}
    missing = [f"{part}/{file}" for part, file in needed.items() if not (folder / part / file).is_file()]
    if missing:
        raise UserError(f"{folder} is incomplete: no {', '.join(missing)}; copy the whole folder again.")


def scheduler_config(folder: Path, scheduler: str) -> dict[str, Any]:
    """The settings in scheduler/scheduler_config.json, for a class of diffusers."""
    unreadable = f"The scheduler in {folder} cannot be read"
    config = descriptions.read(folder / "scheduler/scheduler_config.json", unreadable)
    with descriptions.reading(unreadable):
        diffusers_class(scheduler).from_config(config)
    return config


def load_tokenizer(folder: Path, clip: bool = False) -> Any:
    """The tokenizer in a folder: CLIP's, or one of the class that it says."""
    from transformers import AutoTokenizer, CLIPTokenizer

    unreadable = f"The tokenizer in {folder} cannot be read"
    with descriptions.reading(unreadable):
        tokenizer = (CLIPTokenizer if clip else AutoTokenizer).from_pretrained(folder, local_files_only=True)
        length = tokenizer.model_max_length
        if not isinstance(length, int | float) or length < 1:
            raise ValueError(f"model_max_length is {length!r}")
        if isinstance(tokenizer, CLIPTokenizer) and length > LONGEST_PROMPT:
            raise ValueError(f"model_max_length is {length:,}, more than a CLIP text encoder reads")
        if tokenizer.pad_token is None:
            raise ValueError("it has no pad_token")
    return tokenizer


def check_vocabulary(tokenizer: Any, encoder: Any, folder: Path) -> None:
    """Raise UserError if a tokenizer has more tokens than its text encoder. folder: the tokenizer's."""
    known = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise UserError(
            f"{folder} has {len(tokenizer):,} tokens, and its text encoder knows {known:,}; copy the folder "
            "again."
        )


def diffusers_class(name: str) -> Any:
    """A class of diffusers by name. Raises UserError where this diffusers is too old to have it."""
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except (AttributeError, RuntimeError, ImportError) as error:
        raise UserError(f"This diffusers has no {name}: `pip install -U diffusers`.") from error


def load_network(network: Any, folder: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
    """A network from its folder, of a class of diffusers or transformers, on the CPU unless `options` say
    otherwise: from_pretrained itself would fill gaps with noise. Raises UserError."""
    files, variant = weights_of(folder)
    config = descriptions.read(folder / "config.json", f"{folder} cannot be loaded")
    weights = sum(len(weight_files.read_header(file).shapes) for file in files)
    descriptions.check_layers(config, weights, folder)
    with descriptions.reading(f"{folder} cannot be loaded"):
        if (module := outline(lambda: network.from_config(network.load_config(folder)), dtype)) is not None:
            return module
    if len(files) == 1 and not files[0].name.startswith(OWN_NAMES):
        return _load_file(network, files[0], folder, dtype, **options)
    with descriptions.reading(f"{folder} cannot be loaded"):
        module, info = network.from_pretrained(
            folder,
            torch_dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    _refuse_gaps(folder, [*info["missing_keys"], *info["mismatched_keys"]])
    return module


def _load_file(network: Any, file: Path, folder: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
    """A network of diffusers from a file of another layout, such as ComfyUI's, beside its config.json."""
    kind = weight_files.kind(file)
    if kind in ("quantized", "lora"):
        raise UserError(f"{file} is {weight_files.KINDS[kind]}.")
    with descriptions.reading(f"{file} cannot be loaded"):
        try:
            module = network.from_single_file(
                str(file), config=str(folder), torch_dtype=dtype, local_files_only=True, **options
            )
        except NotImplementedError as error:  # a weight that the file lacks stays on the meta device
            raise UserError(f"{file} is incomplete: weights are missing; download it again.") from error
    if options:  # quantized weights are fewer numbers
        return module
    there = sum(weight_files.read_header(file).numbers.values())
    used = sum(weight.numel() for weight in module.state_dict().values())
    if there != used:
        raise UserError(f"{file} does not fit {folder / 'config.json'}: {there:,} numbers, not {used:,}.")
    return module


def load_clip(folder: Path, dtype: torch.dtype, projection: bool = False) -> nn.Module:
    """A CLIP text encoder from its folder, whichever transformers wrote it and whichever is here.

    projection: with the projection of its pooled output.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    files, _ = weights_of(folder)
    with descriptions.reading(f"{folder} cannot be loaded"):
        described = descriptions.read(folder / "config.json", f"{folder} cannot be loaded")
        weights = sum(len(weight_files.read_header(file).shapes) for file in files)
        descriptions.check_layers(described, weights, folder)
        config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
        kind = CLIPTextModelWithProjection if projection else CLIPTextModel
        if (module := outline(lambda: kind(config), dtype)) is not None:
            return module
        tensors = {name: tensor for file in files for name, tensor in weight_files.read_tensors(file).items()}
        module, missing, _ = clip_text_encoder(tensors, config, dtype, projection)
    _refuse_gaps(folder, missing)
    return module


def check_main_memory(folders: Sequence[Path], dtype: torch.dtype) -> None:
    """Raise UserError where main memory cannot hold the weights of these networks in this type: the system
    would end the process in the middle of loading."""
    import psutil

    if _outline.get():
        return
    headers = (weight_files.read_header(file) for folder in folders for file in weights_of(folder)[0])
    needed = sum(sum(header.numbers.values()) for header in headers) * dtype.itemsize
    available = psutil.virtual_memory().available
    if needed > available:
        kind = str(dtype).removeprefix("torch.")
        way_out = "; set dtype to bf16" if dtype == torch.float32 else ""
        raise UserError(
            f"{' and '.join(map(str, folders))} take {needed / GIB:.1f} GiB of main memory in {kind}, and "
            f"{available / GIB:.1f} GiB are free{way_out}."
        )


def weights_of(folder: Path) -> tuple[list[Path], str | None]:
    """A network's .safetensors files and their variant: 'fp16' where there are no others."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin"))
        raise UserError(
            f"{folder} holds pickled weights (.bin), which are never opened; convert them to .safetensors."
            if pickled
            else f"{folder} is incomplete: it holds no .safetensors file; copy the whole folder again."
        )
    for file in files:
        weight_files.read_header(file)  # says what is wrong with a truncated file
    full = [file for file in files if ".fp16" not in file.name]
    return (full, None) if full else (files, "fp16")


def _refuse_gaps(folder: Path, gaps: Sequence[Any]) -> None:
    if gaps:
        raise UserError(
            f"{folder} does not fit its config.json: {len(gaps)} weights are missing, first {gaps[0]}."
        )
