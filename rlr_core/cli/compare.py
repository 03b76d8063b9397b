"""`rlr compare`: base against LoRA, LoRAs against each other, or strengths, by eye and by number."""

from __future__ import annotations

import argparse
import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.cli.configs import add_settings, build_config
from rlr_core.cli.tables import markdown, signed, table
from rlr_core.config.validate import refuse_python_objects
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

if TYPE_CHECKING:
    from rlr_core.evaluation.comparison import Comparison, Variant

COMPARE = """Compare a model without and with a LoRA, several LoRAs, or one LoRA at several strengths.

  rlr compare runs/nicer/config.yaml --lora runs/nicer/lora.safetensors --out comparison
  rlr compare --model sd15 --reward pickscore --prompts p.txt --lora a.safetensors --lora b.safetensors
  rlr compare runs/nicer/config.yaml evaluation.samples=128 --lora nicer.safetensors --strengths 0 0.5 1 1.5

All get the same prompts (evaluation.prompts, or prompts) and seeds. For the reward and the judge of the
config it says how often each beats the first, with a 95 % interval that counts prompts rather than pictures.
It writes grid.png (framed: the best of a row), table.md and scores.csv."""
ROWS = 8  # of the grid


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare", help="win rates of LoRAs or strengths, and a grid", description=COMPARE
    )
    add_settings(parser, "model", "reward", "evaluation.judge", "prompts", "seed", "device", "dtype")
    parser.add_argument(
        "--lora", metavar="FILE", action="append", required=True,
        help="a LoRA, against the model without it; may be repeated, then against the first of them",
    )  # fmt: skip
    parser.add_argument(
        "--strengths", metavar="X", type=float, nargs="+",
        help="strengths of each LoRA, compared with the first of them; 0 is the model without it",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", default="comparison", help="the folder to write, new or empty"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = build_config(args)
    check_config(config)
    refuse_python_objects(config)
    compared = variants(args.lora, args.strengths)

    from rlr_core.cli.progress import Counter
    from rlr_core.cli.sample import held_out_of
    from rlr_core.common.atomic import replacing
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.evaluation.comparison import check_names, compare
    from rlr_core.evaluation.plots import plot_comparison
    from rlr_core.training.run_folder import require_free

    check_names([variant.name for variant in compared])
    folder = Path(args.out).expanduser()
    require_free(folder)
    prompts = held_out_of(config)
    rewards: dict[str, Any] = {config.reward: {config.reward: config.reward_options}}
    judge, options = config.evaluation.judge, config.evaluation.judge_options
    if judge is not None and (judge, options) != (config.reward, config.reward_options):
        rewards[judge if judge != config.reward else f"{judge} (judge)"] = {judge: options}
    comparison = compare(
        load_model(config.model, config.device, config.dtype), compared, rewards, prompts, config.sampler,
        samples=config.evaluation.samples, seed=config.seed, batch=config.evaluation.batch, keep=ROWS,
        on_progress=Counter,
    )  # fmt: skip
    judged_by = comparison.rewards[-1]  # the judge's, where there is one
    rows = as_rows(comparison)
    with replacing(folder / "grid.png") as path:
        plot_comparison(comparison, path, judged_by, ROWS)
    with replacing(folder / "table.md") as path:
        path.write_text(markdown(rows) + "\n", encoding="utf-8")
    with replacing(folder / "scores.csv") as path:
        path.write_text(as_csv(comparison), encoding="utf-8")
    count = len(comparison.evaluations[comparison.first].prompts)
    print(table(rows))
    print(
        f"{count} pictures each; wins and differences are against {comparison.first!r}, on the same prompts "
        f"and seeds. grid.png, table.md and scores.csv are in {folder}"
    )
    return 0


def variants(loras: list[str], strengths: list[float] | None) -> list[Variant]:
    """What is compared, the first being what the others are measured against."""
    from rlr_core.evaluation.comparison import Variant

    for lora in loras:
        if not Path(lora).expanduser().is_file():
            raise UserError(f"There is no LoRA file {lora!r}.")
    odd = next((strength for strength in strengths or [] if not math.isfinite(strength)), None)
    if odd is not None:
        raise UserError(f"--strengths are numbers such as 0.5, not {odd}.")
    names = short_names(loras)
    if strengths is None:
        base = [Variant("base")] if len(loras) == 1 else []
        return base + [Variant(name, Path(lora).expanduser()) for name, lora in names.items()]
    found = []
    for name, lora in names.items():
        for strength in strengths:
            variant = Variant(f"{name} at {strength:g}", Path(lora).expanduser(), strength)
            found.append(variant if strength else Variant("base"))
    return list(dict.fromkeys(found))


def short_names(loras: list[str]) -> dict[str, str]:
    """File by the shortest end of its path, without .safetensors, that no other file has."""
    whole = [Path(lora).expanduser().absolute().with_suffix("").parts for lora in loras]
    if len(set(whole)) < len(whole):
        raise UserError("--lora names a file twice.")
    length = 1
    while len({parts[-length:] for parts in whole}) < len(whole):
        length += 1
    return {"/".join(parts[-length:]): lora for parts, lora in zip(whole, loras, strict=True)}


def as_rows(comparison: Comparison) -> list[list[str]]:
    """A head, then for each reward a row for each thing compared."""
    from rlr_core.evaluation.plots import percent

    rows = [["score", "of", "mean", "wins", "difference", "diversity"]]
    for reward in comparison.rewards:
        for name, evaluation in comparison.evaluations.items():
            spread = "-" if evaluation.diversity is None else f"{evaluation.diversity:.3f}"
            wins, gain = "-", "-"
            if name != comparison.first:
                wins = percent(comparison.win_rate(name, reward))
                gain = signed(comparison.gain(name, reward))
            rows.append([reward, name, f"{evaluation.estimate(reward).mean:.3f}", wins, gain, spread])
    return rows


def as_csv(comparison: Comparison) -> str:
    """Every score at full precision, a row a picture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["of", "prompt", "seed", *comparison.rewards])
    for name, evaluation in comparison.evaluations.items():
        columns = [evaluation.scores[reward].tolist() for reward in comparison.rewards]
        for prompt, seed, *scores in zip(evaluation.prompts, evaluation.seeds, *columns, strict=True):
            writer.writerow([name, prompt, seed, *map(repr, scores)])
    return text.getvalue()
