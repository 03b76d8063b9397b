"""A vision-language model as the reward: how surely it says yes to questions about the picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlr_core.common.prompt_text import metadata_of
from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import WeightFile, locate
from rlr_core.rewards.towers.precision import as_dtype
from rlr_core.rewards.towers.vision_language import Answerer, VisionLanguageModel

MODEL = WeightFile(
    "model",
    (
        "Qwen3-VL-4B-Instruct",
        "Qwen3-VL-2B-Instruct",
        "Qwen3-VL-8B-Instruct",
        "Qwen2.5-VL-3B-Instruct",
        "Qwen2.5-VL-7B-Instruct",
    ),
    "a vision-language model (a folder of transformers)",
    "https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct, the whole folder",
)
QUESTION = 'Does this picture show "{prompt}"? Answer with yes or no.'


class Vlm(Reward):
    """log p(yes) - log p(no) to a question about the picture, or the mean of that over several questions.

    The questions are the prompt's metadata `questions`: texts to be answered by yes, or
    {question: ..., answer: no}; without them it is `question`, with the prompt in the place of {prompt}.
    As a probability, p(yes) / (p(yes) + p(no)), a sure answer has hardly a gradient; the logit keeps it.
    """

    name = "vlm"
    files = (MODEL,)

    def __init__(
        self,
        model: str | os.PathLike | Answerer | None = None,
        question: str = QUESTION,
        probability: bool = False,
        dtype: str | torch.dtype | None = None,
        checkpointing: bool = False,
    ):
        """model: the folder, or an object with `yes_no_logits`; probability: score in [0, 1]; dtype: of a
        folder's model, None is bfloat16 on an accelerator and float32 on the CPU; checkpointing: recompute
        activations on the way back. Raises UserError for a folder that is missing or wrong."""
        if not question.strip():
            raise UserError("Reward 'vlm': question is empty; ask something that yes or no answers.")
        self.question, self.probability = question, probability
        self.needs_prompt = "{prompt}" in question
        self.range = (0.0, 1.0) if probability else (-10.0, 10.0)
        if model is None or isinstance(model, (str, os.PathLike)):
            folder = locate(MODEL, model).parent
            self.model: Any = VisionLanguageModel(folder, MODEL, as_dtype(dtype), checkpointing)
        else:
            self.model = model
        self.differentiable = self.model.differentiable

    def to(self, device: torch.device | str) -> Vlm:
        if isinstance(self.model, VisionLanguageModel):
            self.model.to(device)
        return self

    def prepare(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            self.questions(prompt)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [self.questions(prompt) for prompt in prompts]
        if not self.differentiable:
            images = images.detach()
        pictures = torch.cat(
            [image.expand(len(q), -1, -1, -1) for image, q in zip(images, asked, strict=True)]
        )
        texts = [text for questions in asked for text, _ in questions]
        signs = [1.0 if yes else -1.0 for questions in asked for _, yes in questions]
        answers = self.model.yes_no_logits(pictures, texts).float()
        answers = answers * torch.tensor(signs, device=answers.device)
        if self.probability:
            answers = answers.sigmoid()
        return torch.stack([part.mean() for part in answers.split([len(q) for q in asked])])

    def questions(self, prompt: str) -> list[tuple[str, bool]]:
        """The questions to ask for a prompt, each with whether yes is the right answer."""
        given = metadata_of(prompt).get("questions")
        if given is None:
            return [(self.question.replace("{prompt}", str(prompt)), True)]
        items = given if isinstance(given, (list, tuple)) else [given]
        questions = [_question(item) for item in items]
        if not questions or None in questions:
            raise UserError(
                f"Reward 'vlm': the metadata `questions` of prompt {str(prompt)!r:.200} must be a list of "
                f"texts or of {{question: text, answer: yes or no}}, not {given!r:.200}."
            )
        return [question for question in questions if question is not None]


def _question(item: Any) -> tuple[str, bool] | None:
    """A question and whether yes is its answer; None for what is none."""
    if isinstance(item, str):
        item = {"question": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("question"), str):
        return None
    answer = item.get("answer", "yes")
    answer = {True: "yes", False: "no"}.get(answer, answer) if isinstance(answer, bool) else answer
    if not item["question"].strip() or str(answer).lower() not in ("yes", "no"):
        return None
    return item["question"], str(answer).lower() == "yes"
