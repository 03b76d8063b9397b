"""Text encoders and tokenizers of a flow transformer's folder, as diffusers' pipeline takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from rlr_core.diffusion.models import folders
from rlr_core.errors import UserError


class Described(Protocol):
    """What a family says of its text encoders; see `FlowTransformer`."""

    denoisers: tuple[str, ...]
    text_encoders: Mapping[str, tuple[str, ...]]
    tokenizers: tuple[str, ...]
    optional: tuple[str, ...]


def check(family: Described, folder: Path) -> None:
    """Raise UserError if a part of the model is missing or cut off: when the folder is loaded, not when the
    prompts' turn comes."""
    networks = [part for part in family.text_encoders if part not in family.optional]
    tokenizers = [part for part in family.tokenizers if part not in family.optional]
    folders.check_parts(folder, (*family.denoisers, "vae", *networks), tokenizers)
    for network in networks:
        folders.weights_of(folder / network)


def load(family: Described, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Every text encoder, on the CPU, and every tokenizer by name; None for one that the folder may lack and
    does. Raises UserError for what the family does not know or what main memory cannot hold."""
    there = {
        part: (folder / part).is_dir() or part not in family.optional
        for part in (*family.text_encoders, *family.tokenizers)
    }
    folders.check_main_memory([folder / name for name in family.text_encoders if there[name]], dtype)
    parts: dict[str, Any] = dict.fromkeys(there)
    for name, classes in family.text_encoders.items():
        if there[name]:
            parts[name] = _encoder(folder, name, classes, dtype)
    for name in family.tokenizers:
        if there[name]:
            parts[name] = folders.load_tokenizer(folder / name)
            folders.check_vocabulary(
                parts[name], parts[name.replace("tokenizer", "text_encoder")], folder / name
            )
    return parts


def _encoder(folder: Path, name: str, classes: tuple[str, ...], dtype: torch.dtype) -> Any:
    import transformers

    kind = folders.part_class(folder, name)
    if kind is None or kind not in classes:
        raise UserError(
            f"{folder / name} is {kind or 'of no known class'}, not {' or '.join(classes)}; copy the folder "
            "again."
        )
    if kind.startswith("CLIP"):
        return folders.load_clip(folder / name, dtype, projection=kind.endswith("Projection"))
    return folders.load_network(getattr(transformers, kind), folder / name, dtype)
