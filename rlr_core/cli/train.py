"""`rlr train` and `rlr demo`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rlr_core.cli.configs import add_settings, build_config
from rlr_core.cli.tables import comparison, table
from rlr_core.config import TrainConfig
from rlr_core.config.reference import help_text
from rlr_core.config.validate import refuse_python_objects
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

TRAIN = """Fine-tune a model on a reward.

  rlr train --model sd15.safetensors --reward aesthetic --prompts prompts.txt --out runs/nicer
  rlr train runs/nicer/config.yaml out=runs/nicer2 method=rlr lora.rank=16
  rlr train --resume runs/nicer steps=200

With the built-in model and no CONFIG.yaml, the settings of rlr demo are what the others start from.
Every setting with its meaning: rlr train --help-settings"""


def add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="fine-tune a model on a reward", description=TRAIN)
    add_settings(
        parser, "model", "reward", "evaluation.judge", "method", "prompts", "steps", "out", "seed", "device",
        "dtype",
    )  # fmt: skip
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR; steps=N makes it longer")
    parser.add_argument(
        "--stop-when-judge-drops", action="store_true",
        help="stop when the judge has fallen significantly below its best, and keep the LoRA of the best",
    )  # fmt: skip
    parser.add_argument(
        "--help-settings", action="store_true", help="print every setting: default, values and meaning"
    )
    parser.set_defaults(run=train)


def add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo", help="watch the built-in model get better, in minutes",
        description="Fine-tune the built-in model on its reward, judged on prompts that training never sees.",
    )  # fmt: skip
    add_settings(parser, "out", "seed")
    parser.set_defaults(run=demo)


def demo(args: argparse.Namespace) -> int:
    import torch

    from rlr_core.demo.preset import demo_config

    torch.set_num_threads(1)  # networks this small gain little from more, and lose much on a busy machine
    return _run(build_config(args, demo_config()), resume=False)


def train(args: argparse.Namespace) -> int:
    if args.help_settings:
        print(help_text())
        return 0
    base = None
    if args.resume is not None:
        if args.out is not None:
            raise UserError("--resume goes on in the run's own folder: leave out --out.")
        base = _config_of(args.resume)
    config = build_config(args, base)
    if args.resume is not None:
        config.out = args.resume
    if args.stop_when_judge_drops:
        config.evaluation.stop_when_judge_drops = True
    return _run(config, resume=args.resume is not None)


def _config_of(folder: str) -> TrainConfig:
    from rlr_core.training.run_folder import RunFolder

    return RunFolder.open(folder).config


def _run(config: TrainConfig, resume: bool) -> int:
    """Check everything that is cheap to check, load, train, report."""
    refuse_python_objects(config)
    check_config(config)
    from rlr_core.config.prompts import read_prompts
    from rlr_core.training.run_folder import require_free

    for prompts in (config.prompts, config.evaluation.prompts or config.prompts):
        read_prompts(prompts)

    from rlr_core.cli.progress import Progress
    from rlr_core.common.distributed import World
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.rewards import load_reward
    from rlr_core.training.trainer import train

    if World().main and not resume:
        require_free(config.out)
    with Progress() as progress:
        progress.loading()
        model = load_model(config.model, config.device, config.dtype)
        reward = load_reward(config.reward, **config.reward_options)
        try:
            result = train(model, reward, config, on_event=progress, resume=resume)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(config)) from None
    if result.waiting:
        print(f"{result.reason}\nGo on with: rlr train --resume {shlex.quote(config.out)}")
    elif result.metrics:
        print(_report(config, result))
    return 0


def _how_to_go_on(config: TrainConfig) -> str:
    from rlr_core.training.run_folder import STATE

    if not (Path(config.out).expanduser() / STATE).exists():
        return "Stopped before there was anything to save."
    return f"Stopped; the state is saved. Go on with: rlr train --resume {shlex.quote(config.out)}"


def _report(config: TrainConfig, result: Any) -> str:
    """What the run did to the scores, what it cost, and where everything is."""
    last, folder = result.metrics[-1], result.folder
    names = {"reward": f"reward: {config.reward}"}
    if "judge" in result.before.scores:
        names["judge"] = f"judge: {config.evaluation.judge}"
    forward, backward = last.get("evaluations/forward", 0), last.get("evaluations/backward", 0)
    costs = [
        ["updates", f"{result.step} ({result.reason})"],
        ["denoiser evaluations", f"{forward:,} forward, {backward:,} forward and backward"],
        ["seconds", f"{last['time/seconds']:.0f}"],
        ["peak memory", f"{last['memory/peak_bytes'] / 2**30:.2f} GiB"],
        ["LoRA", str(folder / "lora.safetensors")],
        ["pictures", f"{folder / 'before_after.png'}, {folder / 'reward.png'}"],
    ]
    return f"{comparison(result.before, result.after, names)}\n\n{table(costs)}"
