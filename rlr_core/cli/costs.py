"""`rlr costs`: what the engine costs on the built-in model, as ratios measured in one run."""

from __future__ import annotations

import argparse
from typing import Any

from rlr_core.cli.tables import table


def add_costs(commands: Any) -> None:
    parser = commands.add_parser(
        "costs", help="time of a rollout against diffusers, memory of an update",
        description="Time of a rollout against diffusers' pipeline, and peak memory of an update by method.",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures at a time")
    parser.set_defaults(run=costs)


def costs(args: argparse.Namespace) -> int:
    from rlr_core.benchmarks import costs as measure
    from rlr_core.config import MethodConfig
    from rlr_core.demo import model_path
    from rlr_core.demo.preset import demo_config

    base = demo_config()
    prompts = [base.prompts[i % len(base.prompts)] for i in range(args.batch)]
    rows = [["sampling", "ours, seconds", "diffusers, seconds", "ratio"]]
    for steps in (10, 50):
        sampler = base.sampler.replace(steps=steps)
        best = measure.rollout_against_pipeline(str(model_path()), prompts, sampler)
        rows.append([
            f"{args.batch} pictures, {steps} steps", f"{best['ours']:.3f}", f"{best['diffusers']:.3f}",
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
                method=method, batch=args.batch, micro_batch=args.batch, decode_batch=args.batch,
                sampler=base.sampler.replace(steps=steps),
            )  # fmt: skip
            peaks.append(measure.update_memory(config))
        rows.append([name, *(f"{peak / 2**20:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.3f}"])
    print("\n" + table(rows))
    return 0
