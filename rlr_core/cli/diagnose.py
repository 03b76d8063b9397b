"""`rlr diagnose`: noise, bias and cost of the methods' gradients on a model and a reward of yours."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rlr_core.cli.configs import add_settings, build_config
from rlr_core.cli.tables import table
from rlr_core.config.validate import refuse_python_objects
from rlr_core.training.check import check_config

DIAGNOSE = """Measure the gradient of every method that estimates one, at fixed weights: how noisy it is,
whether its mean is the true gradient, and what it costs. The truth is back-propagation through every step,
so the reward must be differentiable.

  rlr diagnose                                    the built-in model
  rlr diagnose --model sd15.safetensors --reward aesthetic --prompts p.txt batch=8 --updates 16"""


def add_diagnose(commands: Any) -> None:
    parser = commands.add_parser("diagnose", help="noise, bias and cost of the methods' gradients",
                                 description=DIAGNOSE)  # fmt: skip
    add_settings(parser, "model", "reward", "prompts", "seed", "device", "dtype")
    parser.add_argument("--updates", type=int, default=24, metavar="N", help="estimates of each method")
    parser.set_defaults(run=diagnose)


def diagnose(args: argparse.Namespace) -> int:
    from rlr_core.benchmarks.gradient_quality import measure_methods
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.rewards import load_reward

    config = build_config(args)
    config.evaluation = config.evaluation.replace(judge=None)
    refuse_python_objects(config)
    check_config(config)
    model = load_model(config.model, config.device, config.dtype)
    reward = load_reward(config.reward, **config.reward_options)
    start = time.monotonic()
    rows = [["method", "noise / |gradient|", "cosine to the truth", "largest |z|", "evaluations per update",
             "seconds per update"]]  # fmt: skip
    for quality in measure_methods(model, reward, config, args.updates):
        rows.append([
            quality.name, f"{quality.noise:.3g}", f"{quality.cosine:.2f}", f"{quality.largest_z:.1f}",
            f"{quality.forward} + {quality.backward} with gradient", f"{quality.seconds:.2f}",
        ])  # fmt: skip
    print(table(rows))
    print(
        f"{args.updates} estimates each, {time.monotonic() - start:.0f} seconds. |z| over 4 means a bias; "
        f"the cosine is nan where the noise hides the mean."
    )
    return 0
