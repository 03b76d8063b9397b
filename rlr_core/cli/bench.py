"""`rlr bench`: every method on the demo, at equal evaluations and at equal seconds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rlr_core.cli.tables import markdown, table
from rlr_core.errors import UserError

BENCH = """Train the built-in model with every method and compare what a judge says of the results.

  rlr bench --out runs/bench                      everything, an hour or two; run it again to go on
  rlr bench --out runs/bench --threads 1 &        several at once share the work
  rlr bench --out runs/bench --report             the table of what there is so far
  rlr bench --out runs/jpeg --reward jpeg_compressibility --methods nft awm "ddpo, groups of four"
  rlr bench --out runs/curves --curves --methods auto adaptive       judged after 60, 120 and 240 seconds
  rlr bench --out runs/curves --curves --peers trl/bin/python        TRL's trainers beside them
  rlr bench --costs                               time against diffusers and memory of an update, as ratios"""


def add_bench(commands: Any) -> None:
    parser = commands.add_parser("bench", help="compare the methods on the built-in model", description=BENCH)
    parser.add_argument("--out", default="runs/bench", metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--methods", nargs="*", metavar="NAME", help="rows of the table to run; all of them unless given"
    )
    parser.add_argument(
        "--reward", default="demo", metavar="NAME", help="what is learned from; one reward a folder"
    )
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[0, 1, 2], metavar="N", help="seeds of training"
    )
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, metavar="N",
                        help="budget of denoiser evaluations, with or without a gradient")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="budget of seconds")
    parser.add_argument("--samples", type=int, default=256, metavar="N", help="pictures that are judged")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of this process")
    parser.add_argument("--curves", action="store_true", help="how fast: judge after some seconds of work")
    parser.add_argument("--marks", nargs="+", type=float, default=list(MARKS), metavar="S",
                        help="with --curves: after how many seconds")  # fmt: skip
    parser.add_argument(
        "--peers", metavar="PYTHON", help="with --curves: TRL's trainers too, run by the Python that has them"
    )
    parser.add_argument("--report", action="store_true", help="only print the table")
    parser.add_argument("--costs", action="store_true", help="only measure what an update costs")
    parser.add_argument(
        "--save", metavar="STEM", help="also write STEM.md (the table), STEM.json (means) and STEM.png"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.set_defaults(run=bench)


EVALUATIONS, SECONDS = 16_000, 60.0
MARKS = (60.0, 120.0, 240.0)


def bench(args: argparse.Namespace) -> int:
    if args.costs:
        return _costs()
    if args.curves:
        return _curves(args)
    from rlr_core.benchmarks import comparison as benchmark
    from rlr_core.demo.preset import demo_config

    folder = Path(args.out)
    names = args.methods or list(benchmark.ARMS)
    unknown = [name for name in names if name not in benchmark.ARMS]
    if unknown:
        raise UserError(f"Unknown arm {unknown[0]!r}; known: {'; '.join(benchmark.ARMS)}.")
    if not args.report:
        import torch

        torch.set_num_threads(args.threads)
        arms = [
            benchmark.Arm(name, seed, args.evaluations, args.seconds) for seed in args.seeds for name in names
        ]
        benchmark.run(folder, demo_config().replace(reward=args.reward), arms, args.samples)
    rows = benchmark.report(folder)
    if len(rows) == 1:
        raise UserError(f"There are no results in {str(folder)!r} yet.")
    if args.save:
        _save(Path(args.save), folder, rows)
    print(markdown(rows) if args.markdown else table(rows))
    return 0


def _curves(args: argparse.Namespace) -> int:
    import torch

    from rlr_core.benchmarks import curves
    from rlr_core.benchmarks.comparison import ARMS
    from rlr_core.benchmarks.peers import PEERS
    from rlr_core.demo.preset import demo_config

    known = [*ARMS, *PEERS]
    names = args.methods if args.methods is not None else ["auto", "adaptive"]
    if args.peers and args.methods is None:
        names += PEERS
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"Unknown arm {unknown[0]!r}; known: {'; '.join(known)}.")
    folder = Path(args.out)
    if not args.report:
        torch.set_num_threads(args.threads)
        todo = [curves.Curve(name, seed, args.marks) for seed in args.seeds for name in names]
        curves.run(folder, demo_config(), todo, args.samples, args.peers)
    rows = curves.report(folder)
    if len(rows) == 1:
        raise UserError(f"There are no results in {str(folder)!r} yet.")
    if args.save:
        stem = Path(args.save)
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".md").write_text(markdown(rows) + "\n", encoding="utf-8")
    print(markdown(rows) if args.markdown else table(rows))
    return 0


def _save(stem: Path, folder: Path, rows: list[list[str]]) -> None:
    """The table, the means it is made from, and a picture of the gains at equal evaluations."""
    from rlr_core.benchmarks.comparison import summary
    from rlr_core.evaluation.plots import plot_gains

    means = summary(folder)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(markdown(rows) + "\n", encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(means, indent=1) + "\n", encoding="utf-8")
    each = {arm: [result["evaluations"]["gain"] for result in found] for arm, found in means.items()}
    (first, *_), *_ = means.values()
    plot_gains(each, stem.with_suffix(".png"), f"gain of the {first['scores']} at equal evaluations")


def _costs(batch: int = 16) -> int:
    """Time of a rollout against diffusers' pipeline, and peak memory of an update by method."""
    from rlr_core.benchmarks import costs as measure
    from rlr_core.config import MethodConfig
    from rlr_core.demo import model_path
    from rlr_core.demo.preset import demo_config

    base = demo_config()
    prompts = [base.prompts[i % len(base.prompts)] for i in range(batch)]
    rows = [["sampling", "ours, seconds", "diffusers, seconds", "ratio"]]
    for steps in (10, 50):
        sampler = base.sampler.replace(steps=steps)
        best = measure.rollout_against_pipeline(str(model_path()), prompts, sampler)
        rows.append([
            f"{batch} pictures, {steps} steps", f"{best['ours']:.3f}", f"{best['diffusers']:.3f}",
            f"{best['ours'] / best['diffusers']:.2f}",
        ])  # fmt: skip
    print(table(rows))

    arms = {
        "full": MethodConfig("full"),
        "truncated, K = 1": MethodConfig("truncated", depth=1),
        "truncated, K = 9": MethodConfig("truncated", depth=9),
        "rlr, h = 1": MethodConfig("rlr", window=1),
        "rlr, h = 9": MethodConfig("rlr", window=9),
        "adaptive": MethodConfig("adaptive"),
    }
    rows = [["peak memory of an update", "T = 10, MiB", "T = 50, MiB", "ratio"]]
    for name, method in arms.items():
        peaks = []
        for steps in (10, 50):
            config = base.replace(
                method=method, batch=batch, micro_batch=batch, decode_batch=batch,
                sampler=base.sampler.replace(steps=steps),
            )  # fmt: skip
            peaks.append(measure.update_memory(config))
        rows.append([name, *(f"{peak / 2**20:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.3f}"])
    print("\n" + table(rows))
    return 0
