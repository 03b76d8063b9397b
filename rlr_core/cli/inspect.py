"""`rlr inspect`: what a model file or folder is, and what training it would take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.cli.tables import table
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.diffusion.models.base import DiffusionModel
    from rlr_core.training.memory import Size

INSPECT = """Say what a model file or folder is, what is missing, and what training it would take.

  rlr inspect models/stable-diffusion-xl
  rlr inspect sdxl.safetensors
  rlr inspect lora.safetensors

Headers and descriptions are read, no weights. What training takes is computed for the size that the model was
made for, or another that is given, with a LoRA of rank 8 on attention; the reward's network comes on top."""
GUIDANCE = {"cfg": "classifier-free", "embedded": "embedded in the network", "none": "none, distilled"}


def add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect", help="what a model is, what is missing, and what training it takes", description=INSPECT
    )
    parser.add_argument("path", metavar="FILE_OR_FOLDER", help="a model, a LoRA, or whatever it may be")
    for side in ("width", "height", "frames"):
        text = f"{side} of what is to be trained on, instead of the model's own"
        parser.add_argument(f"--{side}", type=int, metavar="N", help=text)
    parser.add_argument("--no-memory", action="store_true", help="leave out what training it would take")
    parser.set_defaults(run=inspect)


def inspect(args: argparse.Namespace) -> int:
    from rlr_core.common import weights

    path = Path(args.path).expanduser()
    if not path.exists():
        raise UserError(f"There is no file or folder {str(path)!r}.")
    if path.is_file() and weights.kind(path) == "lora":
        print(table(_lora(path)))
        return 0
    from rlr_core.training import memory

    model = memory.outline(path)
    print(table(_model(path, model)))
    if not args.no_memory:
        height, width = model.default_size
        size = memory.Size(args.height or height, args.width or width, args.frames or 1)
        print(f"\nTo train it at {size}, on a card of\n{table(_memory(model, size))}")
    return 0


def _model(path: Path, model: DiffusionModel) -> list[list[str]]:
    rows = [
        ["family", model.family],
        ["prediction", model.prediction],
        ["guidance", GUIDANCE[model.guidance_kind]],
        ["size", "{1} x {0}".format(*model.default_size)],
        ["missing", "nothing"],
    ]
    return rows + [[name, what] for name, what in _weights(path)]


def _weights(path: Path) -> list[tuple[str, str]]:
    """Parameters and types of every part, from the headers of its files."""
    from rlr_core.common.weights import read_header
    from rlr_core.diffusion.models.folders import weights_of

    if path.is_file():
        return [("weights", _numbers(read_header(path).numbers))]
    parts = []
    for folder in sorted(folder for folder in path.iterdir() if any(folder.glob("*.safetensors"))):
        numbers: dict[str, int] = {}
        for file in weights_of(folder)[0]:
            for kind, count in read_header(file).numbers.items():
                numbers[kind] = numbers.get(kind, 0) + count
        parts.append((folder.name, _numbers(numbers)))
    return parts


def _numbers(numbers: dict[str, int]) -> str:
    """'2.57 B parameters, F16'."""
    total = sum(numbers.values())
    scale, unit = (1e9, "B") if total >= 1e8 else (1e6, "M")
    types = ", ".join(sorted(kind for kind, count in numbers.items() if count > total / 100))
    return f"{total / scale:.3g} {unit} parameters, {types}"


def _memory(model: DiffusionModel, size: Size) -> list[list[str]]:
    from rlr_core.training import memory
    from rlr_core.training.preflight import GIB

    needs = memory.needs(model, size)
    found = memory.fits(model, needs)
    smallest = memory.least(model, needs) / GIB
    too_small = f"does not fit: with smaller pieces it still takes {smallest:.1f} GiB beside the reward"
    return [[f"{card} GB", str(fit) if fit is not None else too_small] for card, fit in found.items()]


def _lora(path: Path) -> list[list[str]]:
    """A LoRA file, as it says itself."""
    from rlr_core.lora import load_lora

    file = load_lora(path)
    ranks = sorted({module.rank for module in file.modules.values()})
    alphas = sorted({module.alpha for module in file.modules.values()})
    rows = [
        ["kind", "LoRA"],
        ["modules", str(len(file.modules))],
        ["rank", ", ".join(map(str, ranks))],
        ["alpha", ", ".join(f"{alpha:g}" for alpha in alphas)],
    ]
    told = {"modelspec.architecture": "for", "rlr_base": "base", "rlr_reward": "reward", "rlr_steps": "steps"}
    return rows + [[name, file.metadata[key]] for key, name in told.items() if key in file.metadata]
