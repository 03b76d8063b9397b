"""`rlr score`: what rewards say of pictures on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlr_core.errors import UserError

SCORE = """Score pictures by rewards.

  rlr score pictures/*.png --reward aesthetic --reward clip_score --prompt "a red fox" --csv scores.csv
  rlr score pictures --reward mean_colour --option channel=blue"""


def add_score(commands: Any) -> None:
    parser = commands.add_parser("score", help="score pictures by rewards", description=SCORE)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder or a glob")
    parser.add_argument(
        "--reward", action="append", metavar="NAME", required=True, help="may be repeated; rlr list rewards"
    )
    parser.add_argument("--prompt", metavar="TEXT", default="", help="what the pictures should show")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the reward"
    )
    parser.add_argument("--csv", metavar="FILE", help="also write the scores at full precision")
    parser.add_argument("--device", metavar="NAME", help="cuda, cpu, ...; the best one here unless given")
    parser.set_defaults(run=score)


def score(args: argparse.Namespace) -> int:
    from rlr_core.common.atomic import replacing
    from rlr_core.diffusion.models.loading import find_device
    from rlr_core.rewards.catalog import score_csv, score_images, score_table

    device = find_device(args.device)
    rows = score_images(args.images, args.reward, args.prompt, device, _options(args.option))
    print(score_table(rows))
    if args.csv is not None:
        with replacing(Path(args.csv).expanduser()) as path:
            path.write_text(score_csv(rows), encoding="utf-8")
    return 0


def _options(assignments: list[str]) -> dict[str, Any]:
    """Options as YAML reads their values."""
    import yaml

    options = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{assignment!r} is not an option: write --option KEY=VALUE.")
        try:
            options[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            options[key.strip()] = text
    return options
