"""Readable words: how many letters of the text that a prompt quotes an OCR finds right in the picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from rlr_core.common.images import to_pil
from rlr_core.common.prompt_text import metadata_of
from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.extras import Extra

QUOTED = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»|„([^“”]+)[“”]|(?<!\w)['‘]((?:[^'’]|\b['’]\b)+)['’](?!\w)"
)
PACKAGES = Extra("ocr", ("rapidocr", "onnxruntime"))
SHORTER_SIDE = 512
"""Pixels to which the text detector enlarges smaller pictures."""


class TextInImage(Reward):
    """1 - character error rate of the quoted text, between 0 and 1; the OCR is RapidOCR's (PP-OCR).

    The text is the prompt's metadata `text` (a text or a list of texts) or, without that, what the prompt has
    in quotes. Each text is compared with the words in a row that are nearest to it, without regard to case
    and spaces; other words in the picture cost nothing, letters too many in a word do. The error rate is
    the edit distance over all letters asked for.
    """

    name = "text_in_image"
    differentiable = False
    needs_prompt = True
    range = (0.0, 1.0)
    extra = PACKAGES

    def __init__(self) -> None:
        """Raises UserError where the extra `ocr` is not installed."""
        self.ocr = _engine()

    def prepare(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            wanted_texts(prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            texts = wanted_texts(prompt)
            words = self.read(image)
            errors = sum(letter_errors(text, words) for text in texts)
            scores.append(max(0.0, 1 - errors / sum(map(len, texts))))
        return torch.tensor(scores, device=images.device)

    def read(self, image: Tensor) -> list[str]:
        """The words of a picture [3, H, W], in reading order, in small letters."""
        lines = self.ocr(numpy.asarray(to_pil(image))[:, :, ::-1]).txts or ()  # takes BGR
        return [word.casefold() for line in lines for word in line.split()]


def wanted_texts(prompt: str) -> list[str]:
    """The texts that should be readable, in small letters and without spaces.

    Raises UserError for a prompt that asks for none.
    """
    given: Any = metadata_of(prompt).get("text")
    if given is None:
        given = ["".join(groups) for groups in QUOTED.findall(prompt)]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"Reward 'text_in_image': the metadata `text` of prompt {str(prompt)!r:.200} must be a text or a "
            f"list of texts, not {given!r:.100}."
        )
    texts = [bare for bare in ("".join(text.split()).casefold() for text in texts) if bare]
    if not texts:
        raise UserError(
            f"Reward 'text_in_image': prompt {str(prompt)!r:.200} says no text to be read; put it in quotes, "
            'as in: a sign that says "OPEN".'
        )
    return texts


def letter_errors(text: str, words: Sequence[str]) -> int:
    """The fewest edits that make `text` of some words in a row; len(text) where nothing is nearer.

    Words that do not belong to it may stand before and after.
    """
    best = len(text)
    for start in range(len(words)):
        run = ""
        for word in words[start:]:
            run += word
            if len(run) >= len(text) + best:  # longer ones have that many letters too many
                break
            best = min(best, edit_distance(text, run))
    return best


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance: letters to insert, delete or exchange."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


def _engine() -> Any:
    """RapidOCR with the models that lie in its package; it would download others, and is never asked to."""
    rapidocr = PACKAGES.load(TextInImage.name)
    models = Path(rapidocr.__path__[0]) / "models"
    found = {kind: sorted(models.glob(f"*_{kind}_*.onnx")) for kind in ("det", "rec")}
    for kind, files in found.items():
        if not files:
            raise UserError(
                f"Reward 'text_in_image': there is no *_{kind}_*.onnx in {models}; install a rapidocr that "
                "brings its models: pip install 'rapidocr>=3.10'."
            )
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,  # lines upside down count as unreadable
            "Global.text_score": 0.0,  # an uncertain reading is compared too
            "Det.limit_side_len": SHORTER_SIDE,
            "Det.model_path": str(found["det"][0]),
            "Rec.model_path": str(found["rec"][0]),
        }
    )
