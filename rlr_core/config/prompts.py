"""The prompts of a config: lists and files of them, plain or in stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlr_core.config.settings import TrainConfig
from rlr_core.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """What a reward is asked about, and what the denoiser is told in each stage, coarse to fine."""

    text: str
    stages: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a config file holds it."""
        return {"prompt": self.text, "stages": list(self.stages)}


def read_prompts(source: Any) -> list[Prompt]:
    """Prompts from a list or from a file with one a line.

    An item is a string; a list of stages, coarse to fine, judged by its last; or a mapping with `prompt` (for
    the reward) and `stages`. All prompts of a run have the same number of stages. Raises UserError for an
    empty or unreadable source.
    """
    if isinstance(source, (str, Path)):
        return [Prompt(line, (line,)) for line in _lines(Path(source))]
    if not isinstance(source, Sequence) or not source:
        raise UserError(f"prompts must be a list of prompts or a file with one a line, not {source!r}.")
    prompts = [_prompt(item) for item in source]
    counts = {len(prompt.stages) for prompt in prompts}
    if len(counts) > 1:
        raise UserError(f"Prompts have different numbers of stages: {sorted(counts)}.")
    return prompts


def with_prompts_read(config: TrainConfig) -> TrainConfig:
    """The config with prompt files replaced by what is in them, so that a run does not hang on a file."""

    def read(source: Any) -> Any:
        return [prompt.text for prompt in read_prompts(source)] if isinstance(source, (str, Path)) else source

    evaluation = config.evaluation.replace(prompts=read(config.evaluation.prompts))
    return config.replace(prompts=read(config.prompts), evaluation=evaluation)


def _lines(path: Path) -> list[str]:
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read the prompt file {str(path)!r}: {getattr(error, 'strerror', None) or error}."
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"The prompt file {str(path)!r} is empty; write one prompt a line.")
    return lines


def _prompt(item: Any) -> Prompt:
    text, stages = None, item
    if isinstance(item, Prompt):
        return item
    if isinstance(item, Mapping):
        text, stages = item.get("prompt"), item.get("stages")
    stages = (stages,) if isinstance(stages, str) else stages
    if not isinstance(stages, Sequence) or not stages or not all(isinstance(s, str) for s in stages):
        raise UserError(f"{item!r} is not a prompt: expected a string or a list of stages, coarse to fine.")
    return Prompt(stages[-1] if text is None else str(text), tuple(stages))
