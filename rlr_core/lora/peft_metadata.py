"""peft's settings in a LoRA file's metadata, where diffusers writes and looks for alphas."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.errors import UserError, one_line

if TYPE_CHECKING:
    from rlr_core.diffusion.models.base import DiffusionModel
    from rlr_core.lora.formats import LoraModule

DIFFUSERS_METADATA = "lora_adapter_metadata"
"""The key under which diffusers looks for peft's settings."""
TEXT_LEVEL = "text_model."  # of a CLIP text encoder, which peft and diffusers leave out


def peft_settings(
    model: DiffusionModel, modules: Mapping[str, LoraModule], alpha: float
) -> dict[str, object]:
    """peft's LoraConfig of each network, its keys prefixed as diffusers does ('unet.r').

    alpha: of every module.
    """
    parts: dict[str, dict[str, LoraModule]] = {}
    for layer, module in modules.items():
        network, _, path = layer.partition(".")
        key = model.lora_key(layer, "diffusers")
        if network not in model.denoisers:  # peft takes endings of paths too
            path = path.removeprefix(TEXT_LEVEL)
        parts.setdefault(key[: -len(path)].removesuffix(TEXT_LEVEL), {})[path] = module
    denoisers = {model.lora_key(f"{name}.x", "diffusers")[:-1] for name in model.denoisers}
    settings: dict[str, object] = {}
    for start, part in parts.items():
        anchor = "^" if start in denoisers else ""
        rank = Counter(module.rank for module in part.values()).most_common(1)[0][0]
        settings |= {
            f"{start}r": rank,
            f"{start}lora_alpha": alpha,
            f"{start}rank_pattern": {f"{anchor}{p}": m.rank for p, m in part.items() if m.rank != rank},
            f"{start}alpha_pattern": {},
            f"{start}target_modules": sorted(part),
        }
    return settings


def peft_alphas(path: Path, metadata: Mapping[str, str], names: Mapping[str, object]) -> dict[str, float]:
    """Alpha of each module whose file keeps it in diffusers' metadata, by name in the file.

    peft would run the names in alpha_pattern as expressions; one from a file can be made never to end, so
    only plain names are read.
    """
    if DIFFUSERS_METADATA not in metadata:
        return {}
    try:
        return _alphas_by_name(json.loads(metadata[DIFFUSERS_METADATA]), names)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has no readable {DIFFUSERS_METADATA}: {one_line(error)}.") from error


def _alphas_by_name(settings: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, float]:
    alphas = {}
    for key, alpha in settings.items():
        prefix, separator, _ = key.rpartition("lora_alpha")
        if not separator:
            continue
        pattern = settings.get(f"{prefix}alpha_pattern") or {}
        for name in names:
            if name.startswith(prefix):
                path = name.removeprefix(prefix)
                special = [a for plain, a in pattern.items() if _names(plain, path)]
                alphas[name] = float(special[0] if special else alpha)
    return alphas


def _names(pattern: str, path: str) -> bool:
    """Whether a plain name in alpha_pattern means the module at `path`: as a whole, or as its end."""
    plain = pattern.removeprefix("^").replace(r"\.", ".")
    if re.fullmatch(r"[\w.\-]+", plain) is None:
        raise ValueError(
            f"alpha_pattern has the expression {pattern!r}, and expressions from files are not run"
        )
    return path == plain or (not pattern.startswith("^") and path.endswith("." + plain))
