"""Every setting with its default, its values and its meaning: for a terminal, and as the page settings.md.

python -m rlr_core.config.reference        writes the page
"""

from __future__ import annotations

import json
import textwrap
import typing
from pathlib import Path
from typing import Any

from rlr_core.config.base import Setting
from rlr_core.config.settings import TrainConfig

PAGE = Path(__file__).with_name("settings.md")
EXAMPLE = """\
model: demo
reward: demo
prompts: [a red circle above a blue square, a green triangle left of a yellow circle]
steps: 2
batch: 4
out: runs/yaml
sampler: {steps: 5, guidance: 3.0}
method: {name: rlr, window: 2}
evaluation: {judge: judge, samples: 4}"""

_KINDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list",
    dict: "mapping",
    Any: "list or file",
}


def help_text(width: int = 100) -> str:
    """Every setting for a terminal, in groups."""
    lines = ["Any of these can stand in a CONFIG.yaml, or on the command line as key=value.", ""]
    for heading, group in _groups():
        lines += [heading, ""]
        for known in group:
            lines.append(f"  {known.key} = {_value(known.default)}  ({_values(known)})")
            lines += textwrap.wrap(meaning(known), width, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """Every setting as Markdown."""
    lines = [
        "# Settings",
        "",
        "Every setting of a run, as it stands in a CONFIG.yaml (those with dots in a group of that name) or",
        "on the command line as `key=value`. `rlr train --help-settings` prints the same.",
        "`rlr train run.yaml` runs this one:",
        "",
        f"```yaml\n{EXAMPLE}\n```",
    ]
    for heading, group in _groups():
        lines += ["", f"## {heading}", "", "| Setting | Default | Values | Meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{known.key}` | `{_value(known.default)}` | {_values(known)} | {meaning(known)} |"
            for known in group
        ]
    return "\n".join([*lines, ""])


def meaning(known: Setting, none: str = "null") -> str:
    """The help text, with the methods that the setting is for in front and what None stands for behind.

    none: how a person leaves it open there.
    """
    text = known.help
    if known.methods:
        text = f"{text[0].lower()}{text[1:]}" if text[1].islower() else text
        text = f"{' and '.join(known.methods)}: {text}"
    unset = f" {none[:1].upper()}{none[1:]}: {known.unset}." if known.unset else ""
    return f"{text}{unset}"


def _groups() -> list[tuple[str, list[Setting]]]:
    """Heading and settings of each group, the run's own first."""
    groups: dict[str, list[Setting]] = {}
    for known in TrainConfig.settings():
        groups.setdefault(known.key.rpartition(".")[0], []).append(known)
    fields = TrainConfig.model_fields
    return [
        (f"{name}: {(fields[name].description or '').rstrip('.')}" if name else "The run", group)
        for name, group in groups.items()
    ]


def _values(known: Setting) -> str:
    """What it may be set to."""
    if known.choices:
        return ", ".join(known.choices)
    kind = _KINDS[typing.get_origin(known.types[0]) or known.types[0]]
    return f"{kind}, {known.bounds}" if known.bounds else kind


def _value(value: object) -> str:
    """As YAML would have it."""
    return json.dumps(value) if not isinstance(value, str) or not value else value


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
