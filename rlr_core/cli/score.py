"""`rlr score`: what rewards say of pictures on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlr_core.errors import UserError

SCORE = """Score pictures by rewards.

  rlr score pictures/*.png --reward aesthetic --reward clip_score --prompt "a red fox" --csv scores.csv
  rlr score pictures --reward mean_color --option channel=blue
  rlr score pictures --reward brightness --reward mean_color --option mean_color.channel=blue"""


def add_score(commands: Any) -> None:
    parser = commands.add_parser("score", help="score pictures by rewards", description=SCORE)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder or a glob")
    parser.add_argument(
        "--reward",
        action="append",
        metavar="NAME",
        required=True,
        help="a row of `rlr list rewards`; may be repeated",
    )
    parser.add_argument("--prompt", metavar="TEXT", default="", help="what the pictures should show")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the reward; with several rewards, NAME.KEY=VALUE",
    )
    parser.add_argument("--csv", metavar="FILE", help="also write the scores at full precision")
    parser.add_argument(
        "--device", metavar="NAME", help="device, such as cuda or cpu; the best one here unless given"
    )
    parser.set_defaults(run=score)


def score(args: argparse.Namespace) -> int:
    from rlr_core.common.atomic import replacing
    from rlr_core.diffusion.models.loading import find_device
    from rlr_core.evaluation.score_files import score_csv, score_images, score_table

    device = find_device(args.device)
    rows = score_images(args.images, _rewards(args.reward, args.option), args.prompt, device)
    print(score_table(rows))
    if args.csv is not None:
        with replacing(Path(args.csv).expanduser()) as path:
            path.write_text(score_csv(rows), encoding="utf-8")
    return 0


def _rewards(names: list[str], assignments: list[str]) -> list[dict[str, dict[str, Any]]]:
    """The rewards with their options, whose values are read as YAML."""
    import yaml

    rewards: list[dict[str, dict[str, Any]]] = [{name: {}} for name in names]
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{assignment!r} is not an option: write --option KEY=VALUE.")
        owner, dot, option = key.strip().rpartition(".")
        if not dot and len(names) > 1:
            raise UserError(
                f"With {len(names)} rewards an option says whose it is: --option {names[0]}.{assignment}"
            )
        owners = [reward for reward in rewards if not dot or owner in reward]
        if not owners:
            raise UserError(f"--option {assignment}: {owner!r} is none of the rewards {', '.join(names)}.")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
            value = text
        for reward in owners:
            reward[next(iter(reward))][option] = value
    return rewards
