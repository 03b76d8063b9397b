"""Weight files: where they are looked for, how they are read, and what is said when one is missing or wrong.

Nothing is downloaded and no pickled code runs: .safetensors first, .pt, .pth and .bin only as plain tensors.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rlr_core.errors import UserError

FOLDERS_VARIABLE = "RLR_REWARD_MODELS"
DEFAULT_FOLDER = Path("models") / "reward_models"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
Network = TypeVar("Network", bound=nn.Module)
INSIDE_A_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class WeightFile(NamedTuple):
    """A file that a reward needs."""

    option: str
    """The constructor's option that names the file, when it is not where it is looked for."""
    names: tuple[str, ...]
    """Paths looked for inside each folder, as published, the usual one first; a name may be a Hugging Face
    folder. Ahead of a .pt or .pth its .safetensors twin is looked for."""
    what: str
    """What it holds, in words."""
    source: str
    """Where a person gets it."""

    def advice(self) -> str:
        """Where to get it and where it goes, as a sentence."""
        return (
            f"Get it from {self.source} and put it at {folders()[0] / self.names[0]}, "
            f"or give its path as {self.option}=."
        )


def folders() -> list[Path]:
    """The folders that are searched: those in $RLR_REWARD_MODELS, else ./models/reward_models."""
    listed = [Path(part) for part in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if part]
    return listed or [DEFAULT_FOLDER]


def locate(needed: WeightFile, path: str | os.PathLike | None = None, beside: Path | None = None) -> Path:
    """Where the file is: `path` (itself, or a name inside the folders), else the first usual name found.

    beside: another file of the same reward; the usual names are looked for in its folder first.
    Raises UserError that says what is missing, where to get it and where it goes.
    """
    names = _with_twins(needed.names) if path is None else (os.fspath(path),)
    if path is None and beside is not None:
        for name in names:
            if (beside.parent / Path(name).name).is_file():
                return beside.parent / Path(name).name
    for base in [Path()] * (path is not None) + folders():
        for name in names:
            file = _inside(base / name)
            if file is not None:
                return file
    searched = " or ".join(str(folder) for folder in folders())
    if path is not None:
        raise UserError(f"{path} is not there (it should be {needed.what}). {needed.advice()}")
    raise UserError(f"{needed.names[0]} ({needed.what}) is not in {searched}. {needed.advice()}")


def _with_twins(names: Iterable[str]) -> list[str]:
    """The names, each pickle's preceded by the same name as .safetensors."""
    out = []
    for name in names:
        if name.endswith(PICKLES):
            out.append(str(Path(name).with_suffix(".safetensors")))
        out.append(name)
    return out


def _inside(path: Path) -> Path | None:
    """The weight file that a path stands for: the file itself, or the weights in a Hugging Face folder."""
    if path.is_file():
        return path
    if path.is_dir():
        return next((path / name for name in INSIDE_A_FOLDER if (path / name).is_file()), None)
    return None


def read_tensors(path: Path, needed: WeightFile) -> dict[str, Tensor]:
    """Every tensor of a .safetensors, .pt, .pth or .bin file, or of the shards an index file lists.

    A nested {"state_dict": ...} is unwrapped and a leading "module." is taken off the names.
    Raises UserError for a truncated file, an unknown kind of file, and a pickle that holds more than tensors.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path, needed)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        tensors = _read_safetensors(path, needed)
    elif suffix in PICKLES:
        tensors = _read_pickle(path, needed)
    else:
        raise UserError(f"{path} is neither a .safetensors nor a .pt file. {needed.advice()}")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _read_safetensors(path: Path, needed: WeightFile) -> dict[str, Tensor]:
    from rlr_core.common.weights import read_tensors

    try:
        return read_tensors(path)
    except UserError as error:
        raise UserError(f"{path} is truncated or not a .safetensors file. {needed.advice()}") from error


def _read_pickle(path: Path, needed: WeightFile) -> dict[str, Tensor]:
    """The tensors of a torch.save file, read without running anything it says (weights_only)."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise UserError(
            f"{path} is a pickle, and torch {torch.__version__} cannot refuse the code one may hold "
            "(CVE-2025-32434); update torch to 2.6 or newer, or use a .safetensors file."
        )
    zipped = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if file.read(2) == b"PK" and not zipped:
            raise UserError(f"{path} is truncated. {needed.advice()}")
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(
                    f"{path} is a TorchScript program, not a file of weights; "
                    f"a .safetensors file of the same model is needed. {needed.advice()}"
                )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it holds more than tensors, and loading it could run code. "
            f"Use a .safetensors file, or one that was saved from a plain state dict. {needed.advice()}"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is truncated or not a torch file. {needed.advice()}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path} holds no named tensors; expected {needed.what}. {needed.advice()}")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _read_shards(index: Path, needed: WeightFile) -> dict[str, Tensor]:
    """The tensors of every shard that a Hugging Face index lists."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weight files. {needed.advice()}") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = index.parent / Path(name).name  # beside the index and nowhere else
        if not shard.is_file():
            raise UserError(f"{shard} is missing; {index.name} lists it. {needed.advice()}")
        tensors.update(read_tensors(shard, needed))
    return tensors


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def fill(module: Network, tensors: dict[str, Tensor], path: Path, needed: WeightFile) -> Network:
    """Put a file's tensors into a module built on no memory; frozen, in eval mode.

    Every tensor must have its place and every place its tensor, of the same shape; else UserError.
    """
    places = module.state_dict()
    missing = [name for name in places if name not in tensors]
    extra = [name for name in tensors if name not in places]
    wrong = [name for name in places if name in tensors and tensors[name].shape != places[name].shape]
    if missing or extra or wrong:
        raise wrong_architecture(path, needed, missing, extra, wrong)
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).eval()


def wrong_architecture(
    path: Path,
    needed: WeightFile,
    missing: Iterable[str] = (),
    extra: Iterable[str] = (),
    wrong: Iterable[str] = (),
) -> UserError:
    """The one sentence for a file that holds another network than the one expected."""
    problems = []
    for names, words in ((missing, "lacks"), (extra, "has unexpected"), (wrong, "has another shape for")):
        names = list(names)
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            problems.append(f"{words} {names[0]!r}{more}")
    return UserError(f"{path} is not {needed.what}: it {', '.join(problems)}. {needed.advice()}")
