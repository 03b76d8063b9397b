"""A config from a command line: CONFIG.yaml, then flags, then key=value, each winning over the one before."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlr_core.config import TrainConfig, config_from_dict, load_config, override
from rlr_core.config.reference import meaning
from rlr_core.errors import UserError

FLAGS = {
    "model": "PATH",
    "reward": "NAME",
    "evaluation.judge": "NAME",
    "method": "NAME",
    "prompts": "FILE",
    "steps": "N",
    "seed": "N",
    "out": "DIR",
    "device": "NAME",
    "dtype": "NAME",
}
"""Setting -> placeholder of the flag that is named after its last part; type and help are the field's."""


def add_settings(parser: argparse.ArgumentParser, *flags: str) -> None:
    """CONFIG.yaml and key=value, and flags for some of FLAGS."""
    parser.add_argument(
        "settings", nargs="*", metavar="CONFIG.yaml | key=value",
        help="a config, such as a run folder's config.yaml; any setting: sampler.steps=10",
    )  # fmt: skip
    known = {setting.key: setting for setting in TrainConfig.settings()}
    for flag in flags:
        setting = known["method.name" if flag == "method" else flag]
        kind = int if setting.types == (int,) else str
        name = flag.rpartition(".")[2]
        parser.add_argument(
            f"--{name}", dest=flag, metavar=FLAGS[flag], type=kind, help=meaning(setting, "unless given")
        )


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
