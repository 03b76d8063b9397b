"""`rlr list`: what there is to choose from."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from rlr_core.cli.tables import table


def add_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="models, methods, rewards, samplers, prompts",
        description="What there is to choose from.",
    )
    parser.add_argument("what", nargs="?", choices=list(LISTS), help="all of them unless given")
    parser.set_defaults(run=show)


def show(args: argparse.Namespace) -> int:
    chosen = [args.what] if args.what else list(LISTS)
    print("\n\n".join(f"{name}\n{_indented(LISTS[name]())}" for name in chosen))
    return 0


def _models() -> list[list[str]]:
    from rlr_core.diffusion.models.loading import BUILT_IN, FAMILIES

    by_path = "by its path: a diffusers folder or a .safetensors checkpoint"
    return [*([name, "built in"] for name in BUILT_IN), *([name, by_path] for name in FAMILIES)]


def _methods() -> list[list[str]]:
    from rlr_core.methods import METHODS, method_class

    rows = []
    for method in map(method_class, METHODS):
        reward = "needs the reward's gradient" if method.needs_gradient == "needed" else "any reward"
        bias = "" if method.bias == "none" else f"biased: {method.bias}"
        when = f"when: {method.when}" if method.when else ""
        remarks = [f"{part[0].upper()}{part[1:]}." for part in (reward, bias, when) if part]
        rows += [[method.name, method.summary], ["", " ".join(remarks)]]
    return rows


def _rewards() -> list[list[str]]:
    from rlr_core.rewards.catalog import list_rewards

    rows = list_rewards()
    return [
        [row.name, row.summary, "ready" if row.ready else f"missing: {row.missing}", row.options]
        for row in rows
    ]


def _samplers() -> list[list[str]]:
    from rlr_core.diffusion import kernels

    names = [*kernels.DIFFUSION_KERNELS, *kernels.FLOW_KERNELS]
    return [["auto", "what fits the model"], *([name, _first_line(getattr(kernels, name))] for name in names)]


def _prompts() -> list[list[str]]:
    from rlr_core.config.prompts import prompt_sets

    return [[name, f"{len(lines)} prompts, such as: {lines[0]}"] for name, lines in prompt_sets().items()]


LISTS = {
    "models": _models,
    "methods": _methods,
    "rewards": _rewards,
    "samplers": _samplers,
    "prompts": _prompts,
}


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0].rstrip(".")


def _indented(rows: list[list[str]]) -> str:
    return "\n".join(f"  {line}" for line in table(rows).splitlines())
