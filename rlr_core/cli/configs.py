"""A config from a command line: CONFIG.yaml, then flags, then key=value, each winning over the one before."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlr_core.config import TrainConfig, config_from_dict, load_config, override
from rlr_core.errors import UserError

FLAGS: dict[str, tuple[str, type, str]] = {
    "model": ("PATH", str, "demo, a diffusers folder, or a .safetensors checkpoint"),
    "reward": ("NAME", str, "what is maximised; see rlr list rewards"),
    "evaluation.judge": ("NAME", str, "a second reward that only watches, on held-out prompts"),
    "method": ("NAME", str, "how the gradient is estimated; see rlr list methods"),
    "prompts": ("FILE", str, "one prompt a line"),
    "steps": ("N", int, "updates"),
    "seed": ("N", int, "seed of everything random"),
    "out": ("DIR", str, "the folder to write, new or empty"),
    "device": ("NAME", str, "cuda, cpu, ...; the best one here unless given"),
    "dtype": ("NAME", str, "of the frozen weights: bf16, fp16 or fp32"),
}
"""Setting -> placeholder, type and help of the flag that is named after its last part."""


def add_settings(parser: argparse.ArgumentParser, *flags: str) -> None:
    """CONFIG.yaml and key=value, and flags for some of FLAGS."""
    parser.add_argument(
        "settings", nargs="*", metavar="CONFIG.yaml | key=value",
        help="a config, such as a run folder's config.yaml; any setting: sampler.steps=10",
    )  # fmt: skip
    for setting in flags:
        placeholder, kind, text = FLAGS[setting]
        name = setting.rpartition(".")[2]
        parser.add_argument(f"--{name}", dest=setting, metavar=placeholder, type=kind, help=text)


def build_config(args: argparse.Namespace, base: TrainConfig | None = None) -> TrainConfig:
    """The config that a command line means.

    base: what it starts from where it names no CONFIG.yaml; None takes the defaults, or for the built-in
    model those of `rlr demo`. Prompt files are read into the config, so that it stays complete.
    """
    files = [setting for setting in args.settings if "=" not in setting]
    settings = [setting for setting in args.settings if "=" in setting]
    if len(files) > 1:
        raise UserError(f"One config file at a time, not {' and '.join(files)}.")
    if files and not files[0].endswith((".yaml", ".yml")) and not Path(files[0]).exists():
        raise UserError(f"{files[0]!r} is neither a config file nor a setting (key=value).")

    def complete(config: TrainConfig) -> TrainConfig:
        return override(_with_flags(config, args), settings)

    if files:
        config = complete(load_config(files[0]))
    elif base is not None:
        config = complete(base)
    else:
        config = complete(TrainConfig())
        if config.model == "demo":
            from rlr_core.demo.preset import demo_config

            config = complete(demo_config(out=TrainConfig().out))
    return _self_contained(config)


def _with_flags(config: TrainConfig, args: argparse.Namespace) -> TrainConfig:
    data = config.to_dict()
    for setting in FLAGS:
        value = getattr(args, setting, None)
        if value is None:
            continue
        section, _, name = setting.rpartition(".")
        if setting == "method":
            section, name = "method", "name"
        (data[section] if section else data)[name] = value
    return config_from_dict(data)


def _self_contained(config: TrainConfig) -> TrainConfig:
    """Prompt files read, and the model's path independent of where the command runs."""
    if config.model == "demo":
        from rlr_core.demo.scenes import held_out_prompts, training_prompts

        if config.prompts is None and config.evaluation.prompts is None:
            config.evaluation.prompts = held_out_prompts()
        if config.prompts is None:
            config.prompts = training_prompts()
    elif Path(config.model).expanduser().exists():
        config.model = str(Path(config.model).expanduser().absolute())
    from rlr_core.config.prompts import with_prompts_read

    return with_prompts_read(config)
