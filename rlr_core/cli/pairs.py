"""`rlr pairs`: pictures that somebody compared, as a file of preferences for dpo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlr_core.errors import UserError

PAIRS = """Make a file of preferences, which the method dpo learns from.

  rlr pairs choices.csv --out liked.safetensors
  rlr pairs output/rlr/pairs/my-pairs --out liked.safetensors
  rlr train --model sd15.safetensors --prompts prompts.txt --method dpo method.pairs=liked.safetensors

The table has a first line preferred,rejected,prompt and a line for each pair: two picture files, relative to
the table, and what they show. A folder is one that the node RLR Preferences has filled. All pictures get the
size of the first."""


def add_pairs(commands: Any) -> None:
    parser = commands.add_parser(
        "pairs", help="a file of preferences from pairs of pictures", description=PAIRS
    )
    parser.add_argument("source", metavar="TABLE", help="a .csv table, or a folder of RLR Preferences")
    parser.add_argument("--out", metavar="FILE", required=True, help="the .safetensors file to write")
    parser.set_defaults(run=pairs)


def pairs(args: argparse.Namespace) -> int:
    from rlr_core.methods.pair_collection import INDEX, PairCollection, read_table, save_rows

    source = Path(args.source).expanduser()
    if not args.out.endswith(".safetensors"):
        raise UserError(f"--out {args.out!r} must end in .safetensors.")
    if source.is_dir():
        if not (source / INDEX).is_file():
            raise UserError(f"{args.source!r} holds no {INDEX}: it is no folder of RLR Preferences.")
        count = PairCollection(source).save(args.out)
        if not count:
            raise UserError(f"No pair in {args.source!r} is decided yet.")
    else:
        rows = read_table(source)
        save_rows(rows, args.out)
        count = len(rows)
    print(f"{count} pairs in {args.out}")
    return 0
