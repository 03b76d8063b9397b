"""LoRA files of models with two denoisers: one for each, as ComfyUI and diffusers load them.

A LoRA on both is written as X.safetensors, for much noise, and X_low_noise.safetensors, for little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlr_core.diffusion.models.base import NOISES
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.diffusion.models.base import DiffusionModel
    from rlr_core.lora.formats import LoraModule

DENOISER, OTHER_HALF = "denoiser", "other_half"
"""What a file's metadata call, after 'rlr_', the denoiser that it is for, and the file of the other one."""


class Half(NamedTuple):
    """What one file holds."""

    path: Path
    modules: dict[str, LoraModule]
    metadata: dict[str, str]


def split(model: DiffusionModel, modules: dict[str, LoraModule], path: Path) -> Iterator[Half]:
    """What goes into which file; all of it into `path` where one denoiser is adapted."""
    if len(model.denoisers) == 1:
        yield Half(path, modules, {})
        return
    halves = {
        noise: {layer: module for layer, module in modules.items() if layer.partition(".")[0] == network}
        for noise, network in zip(NOISES, model.denoisers, strict=True)
    }
    high, low = (halves[noise] for noise in NOISES)
    if high:
        yield Half(path, high, {DENOISER: NOISES[0]} | ({OTHER_HALF: _low(path).name} if low else {}))
    if low:
        yield Half(_low(path) if high else path, low, {DENOISER: NOISES[1]})


def files(model: DiffusionModel, path: Path, metadata: Mapping[str, str]) -> dict[Path, str | None]:
    """The files that make up the LoRA in `path`, and the denoiser that each is for; None for a model's only
    one. metadata: of that file. Raises UserError where that is not to be known, or the other half is gone."""
    if len(model.denoisers) == 1:
        return {path: None}
    by_noise = dict(zip(NOISES, model.denoisers, strict=True))
    noise = metadata.get(f"rlr_{DENOISER}") or _noise_in(path.stem)
    if noise not in by_noise:
        raise UserError(
            f"{path} does not say which of the two denoisers of {model.name} it is for; put "
            f"{' or '.join(NOISES)} into its name."
        )
    found: dict[Path, str | None] = {path: by_noise[noise]}
    if f"rlr_{OTHER_HALF}" in metadata:
        if not _low(path).is_file():
            raise UserError(
                f"{path} is one half of a LoRA; put the other, {_low(path).name}, into the same folder."
            )
        found[_low(path)] = by_noise[NOISES[1]]
    return found


def _low(path: Path) -> Path:
    return path.with_stem(f"{path.stem}_{NOISES[1]}")


def _noise_in(name: str) -> str | None:
    """'high_noise' or 'low_noise' where a name has one of the two words."""
    words = {noise for noise in NOISES if noise.partition("_")[0] in name.lower()}
    return words.pop() if len(words) == 1 else None
