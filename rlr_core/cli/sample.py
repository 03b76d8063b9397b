"""`rlr sample` and `rlr evaluate`: a model as it stands, with or without a LoRA."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.cli.configs import add_settings, build_config
from rlr_core.config import TrainConfig
from rlr_core.config.validate import refuse_python_objects
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

if TYPE_CHECKING:
    from rlr_core.diffusion.models.base import DiffusionModel

SAMPLE = """Make pictures, as PNG files and a grid.

  rlr sample --model sd15.safetensors --prompt "a red fox" --seeds 1 2 3 --lora nicer.safetensors
  rlr sample runs/nicer/config.yaml --lora runs/nicer/lora.safetensors --out pictures

A config gives the model, the sampler and, where no prompt is named, its first held-out prompts."""

EVALUATE = """Measure a model on held-out prompts, and with --lora what the LoRA changes.

  rlr evaluate runs/nicer/config.yaml --lora runs/nicer/lora.safetensors evaluation.samples=128

The reward and the judge are the config's; so are the prompts: evaluation.prompts, or prompts."""


def add_sample(commands: Any) -> None:
    parser = commands.add_parser("sample", help="make pictures", description=SAMPLE)
    add_settings(parser, "model", "prompts", "seed", "device", "dtype")
    parser.add_argument("--out", metavar="DIR", default="samples", help="the folder to write, new or empty")
    parser.add_argument("--prompt", metavar="TEXT", action="append", help="a prompt; may be repeated")
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        nargs="+",
        help="one picture of every prompt for each seed; --seed unless given",
    )
    _add_lora(parser)
    parser.set_defaults(run=sample)


def add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate", help="means with intervals, with and without a LoRA", description=EVALUATE
    )
    add_settings(parser, "model", "reward", "evaluation.judge", "prompts", "seed", "device", "dtype")
    _add_lora(parser)
    parser.set_defaults(run=evaluate)


def _add_lora(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lora", metavar="FILE", help="a LoRA to apply")
    parser.add_argument(
        "--strength", metavar="X", type=float, default=1.0, help="strength of the LoRA; 1 as trained"
    )


def sample(args: argparse.Namespace) -> int:
    config = _config(args)
    prompts = args.prompt or held_out_of(config)
    if not args.prompt and getattr(args, "prompts", None) is None:
        prompts = prompts[: config.keep_samples]
    seeds = args.seeds or [config.seed]

    from rlr_core.cli.progress import Counter
    from rlr_core.common.atomic import replacing
    from rlr_core.common.images import grid, to_pil
    from rlr_core.evaluation import sampling
    from rlr_core.training.run_folder import require_free

    folder = Path(args.out).expanduser()
    require_free(folder)
    model = _model(config)
    adapter = None if args.lora is None else _apply(model, args)
    each = [prompt for prompt in prompts for _ in seeds]
    images = sampling.sample(
        model,
        each,
        seeds * len(prompts),
        config.sampler,
        adapter=adapter,
        batch=config.evaluation.batch,
        on_progress=Counter("sampling"),
    )
    for number, image in enumerate(images):
        with replacing(folder / f"{number:04d}_seed{seeds[number % len(seeds)]}.png") as path:
            to_pil(image).save(path)
    with replacing(folder / "grid.png") as path:
        grid(images, len(seeds) if len(seeds) > 1 else None).save(path)
    print(f"{len(images)} pictures and grid.png in {folder}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    config = _config(args)
    refuse_python_objects(config)
    prompts = held_out_of(config)

    from rlr_core.cli.progress import Counter
    from rlr_core.cli.tables import comparison
    from rlr_core.evaluation import sampling
    from rlr_core.rewards import load_reward

    names = {"reward": f"reward: {config.reward}"}
    rewards = {"reward": load_reward(config.reward, **config.reward_options)}
    if config.evaluation.judge is not None:
        names["judge"] = f"judge: {config.evaluation.judge}"
        rewards["judge"] = load_reward(config.evaluation.judge, **config.evaluation.judge_options)
    model = _model(config)
    adapter = None if args.lora is None else _apply(model, args)

    def measure(what: str):
        return sampling.evaluate(
            model,
            rewards,
            prompts,
            config.sampler,
            adapter=adapter,
            samples=config.evaluation.samples,
            seed=config.seed,
            batch=config.evaluation.batch,
            on_progress=Counter(what),
        )

    if adapter is None:
        print(comparison(measure("evaluating"), None, names))
        return 0
    with adapter.disabled():
        before = measure("without the LoRA")
    print(comparison(before, measure("with the LoRA"), names))
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    config = build_config(args)
    check_config(config)
    if args.lora is not None and not Path(args.lora).expanduser().is_file():
        raise UserError(f"There is no LoRA file {args.lora!r}.")
    return config


def held_out_of(config: TrainConfig) -> list[Any]:
    """The held-out prompts of a config, or its prompts."""
    from rlr_core.config.prompts import read_prompts

    prompts = config.evaluation.prompts or config.prompts
    if prompts is None:
        raise UserError("Which prompts? Give --prompts FILE, or a CONFIG.yaml that has some.")
    return read_prompts(prompts)


def _model(config: TrainConfig) -> DiffusionModel:
    from rlr_core.diffusion.models.loading import load_model

    return load_model(config.model, config.device, config.dtype)


def _apply(model: DiffusionModel, args: argparse.Namespace):
    from rlr_core.lora.apply import apply_lora

    return apply_lora(model, Path(args.lora).expanduser(), args.strength)
