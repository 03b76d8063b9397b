"""`rlr bench`: every method on the demo, at equal evaluations and at equal seconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlr_core.cli.tables import markdown, table
from rlr_core.errors import UserError

BENCH = """Train the built-in model with every method and compare what a judge says of the results.

  rlr bench --out runs/bench                      everything, an hour or so; run it again to go on
  rlr bench --out runs/bench --threads 1 &        several at once share the work
  rlr bench --out runs/bench --report             the table of what there is so far"""


def add_bench(commands: Any) -> None:
    parser = commands.add_parser("bench", help="compare the methods on the built-in model", description=BENCH)
    parser.add_argument("--out", default="runs/bench", metavar="DIR", help="folder of the results")
    parser.add_argument("--methods", nargs="*", metavar="NAME", help="arms to run; all of them unless given")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], metavar="N", help="of training")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, metavar="N",
                        help="budget of denoiser evaluations, with or without a gradient")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="budget of seconds")
    parser.add_argument("--samples", type=int, default=256, metavar="N", help="pictures that are judged")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of this process")
    parser.add_argument("--report", action="store_true", help="only print the table")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.set_defaults(run=bench)


EVALUATIONS, SECONDS = 16_000, 60.0


def bench(args: argparse.Namespace) -> int:
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
        benchmark.run(folder, demo_config(), arms, args.samples)
    rows = benchmark.report(folder)
    if len(rows) == 1:
        raise UserError(f"There are no results in {str(folder)!r} yet.")
    print(markdown(rows) if args.markdown else table(rows))
    return 0
