"""The prompts of a config: lists and files of them, plain or in stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlr_core.common.prompt_text import PromptText
from rlr_core.common.text_files import read_text
from rlr_core.config.settings import TrainConfig
from rlr_core.errors import UserError

LARGEST = 8 * 2**20
"""Bytes of a prompt file: about a hundred thousand prompts."""
SETS = Path(__file__).parents[1] / "prompts"
"""Lists of prompts that come along, to be named instead of a file."""


@dataclass(frozen=True)
class Prompt:
    """What a reward is asked about, and what the denoiser is told in each stage, coarse to fine."""

    text: str
    """A PromptText where there is metadata."""
    stages: tuple[str, ...]
    metadata: str = ""
    """As JSON, so that prompts can be compared; '' for none."""

    @classmethod
    def of(cls, text: str, stages: Sequence[str], metadata: Mapping[str, Any] | None = None) -> Prompt:
        """metadata: what rewards may want to know beside the text, as JSON holds it."""
        if not metadata:
            return cls(text, tuple(stages))
        return cls(PromptText(text, metadata), tuple(stages), json.dumps(metadata, sort_keys=True))

    def to_dict(self) -> dict[str, Any]:
        """As a config file holds it."""
        item: dict[str, Any] = {"prompt": str(self.text), "stages": list(self.stages)}
        return item | ({"metadata": json.loads(self.metadata)} if self.metadata else {})


def read_prompts(source: Any) -> list[Prompt]:
    """Prompts from a list, a file with one a line (.jsonl: an item a line), or one of `prompt_sets` by name.

    An item is a string; a list of stages, coarse to fine, judged by its last; or a mapping with `prompt` (for
    the reward), `stages` (the prompt alone unless given) and `metadata` (a mapping for rewards that read it,
    such as which words should be readable). All prompts of a run have the same number of stages. Raises
    UserError for an empty or unreadable source.
    """
    if isinstance(source, (str, Path)):
        source = _items(Path(source))
    if not isinstance(source, Sequence) or not source:
        raise UserError(f"prompts must be a list of prompts or a file with one a line, not {source!r}.")
    prompts = [_prompt(item) for item in source]
    counts = {len(prompt.stages) for prompt in prompts}
    if len(counts) > 1:
        raise UserError(f"Prompts have different numbers of stages: {sorted(counts)}.")
    return prompts


def prompt_sets() -> dict[str, list[str]]:
    """The lists of prompts that come along, by name."""
    return {path.stem: _lines(path) for path in sorted(SETS.glob("*.txt"))}


def with_prompts_read(config: TrainConfig) -> TrainConfig:
    """The config with prompt files replaced by what is in them, so that a run does not hang on a file."""

    def read(source: Any) -> Any:
        return _items(Path(source)) if isinstance(source, (str, Path)) else source

    evaluation = config.evaluation.replace(prompts=read(config.evaluation.prompts))
    return config.replace(prompts=read(config.prompts), evaluation=evaluation)


def _items(path: Path) -> list[Any]:
    """The items of a prompt file: its lines, or what they hold as JSON; a file goes before a set."""
    own = SETS / f"{path.name}.txt"
    lines = _lines(own if str(path) == path.name and own.is_file() and not path.exists() else path)
    if path.suffix.lower() != ".jsonl":
        return lines
    items = []
    for number, line in enumerate(lines, start=1):
        try:
            items.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"Line {number} of {str(path)!r} is not JSON: {line[:80]!r}.") from error
    return items


def _lines(path: Path) -> list[str]:
    text = read_text(path, "prompt file", LARGEST)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"The prompt file {str(path)!r} is empty; write one prompt a line.")
    return lines


def _prompt(item: Any) -> Prompt:
    if isinstance(item, Prompt):
        return item
    text, stages, metadata = None, item, None
    if isinstance(item, Mapping):
        text, metadata = item.get("prompt"), item.get("metadata")
        stages = item.get("stages", text)
    stages = (stages,) if isinstance(stages, str) else stages
    if not isinstance(stages, Sequence) or not stages or not all(isinstance(s, str) for s in stages):
        raise UserError(f"{item!r} is not a prompt: expected a string or a list of stages, coarse to fine.")
    text = stages[-1] if text is None else str(text)
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UserError(f"The metadata of prompt {text!r} is {metadata!r}; it must be a mapping.")
    try:
        return Prompt.of(text, stages, metadata)
    except (TypeError, ValueError) as error:
        raise UserError(f"The metadata of prompt {text!r} is nothing that JSON can hold: {error}.") from error
