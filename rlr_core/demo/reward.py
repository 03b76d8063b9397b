"""The demo's reward: a small CLIP that says how surely a picture shows what its prompt says.

It is an `open_clip` model of half a million parameters, trained (build/reward.py) so that the cosine of a
picture and a caption crosses a fixed threshold where they match. The score is the probability of that match.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward

from . import reward_path
from .scenes import SIZE, parse
from .vocabulary import LENGTH


class DemoReward(Reward):
    """`reward(images, prompts)`: how surely, in (0, 1), each picture shows what its prompt says."""

    name = "demo"
    differentiable = True
    needs_prompt = True
    range = (0.0, 1.0)

    def __init__(self, folder: str | os.PathLike | None = None):
        """folder: of the reward's config and weights; None is the built-in one."""
        self.clip, self.tokenize = load_demo_clip(folder)
        self.known: dict[str, Tensor] = {}  # unit embedding of each prompt seen

    def to(self, device: str | torch.device) -> DemoReward:
        self.clip.to(device)
        self.known = {prompt: embedding.to(device) for prompt, embedding in self.known.items()}
        return self

    def prepare(self, prompts: Sequence[str]) -> None:
        """Embeds the new prompts, together. Raises UserError for one that is no caption of the world."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        for prompt in new:
            parse(prompt)
        if new:
            with torch.no_grad():
                tokens = self.tokenize(new).to(self.clip.logit_scale.device)
                self.known.update(zip(new, self.clip.encode_text(tokens, normalize=True), strict=True))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """images [B, 3, H, W] in [0, 1] (resized to 64 x 64 if need be), prompts: B captions -> [B]
        float32 in (0, 1), differentiable in the images. Raises UserError for a prompt of another world."""
        self.prepare(prompts)
        text = torch.stack([self.known[prompt] for prompt in prompts])
        cosine = (self.clip.encode_image(normalized(images), normalize=True) * text).sum(1)
        return (SOFTNESS * match_logit(self.clip, cosine)).sigmoid()


SOFTNESS = 0.5
"""Flattens the probability, so that a picture that is surely wrong still has a gradient."""


def match_logit(clip: Any, cosine: Tensor) -> Tensor:
    """Log-odds that picture and caption match, from their cosine."""
    return clip.logit_scale.exp() * cosine + clip.logit_bias


def normalized(images: Tensor) -> Tensor:
    """What the image tower takes, float32 [B, 3, 64, 64] in [-1, 1], from pictures [B, 3, H, W] in [0, 1]."""
    images = images.float()
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return images * 2 - 1


def load_demo_clip(
    folder: str | os.PathLike | None = None,
) -> tuple[Any, Callable[[Sequence[str]], Tensor]]:
    """The frozen float32 `open_clip` model and its tokenizer: prompts -> tokens [B, 12] int64.

    folder: None is the built-in one. Raises UserError for a folder that holds no such model.
    """
    from open_clip.model import CLIP
    from safetensors.torch import load_file

    folder = reward_path() if folder is None else Path(folder)
    for name in ("open_clip_config.json", "model.safetensors", "tokenizer"):
        if not (folder / name).exists():
            raise UserError(f"{folder} is not a folder of the demo's reward: it holds no {name}.")
    clip = CLIP(**json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"])
    weights = load_file(folder / "model.safetensors")
    clip.load_state_dict({name: value.float() for name, value in weights.items()})
    return clip.eval().requires_grad_(False), load_tokenize(folder / "tokenizer")


def load_tokenize(folder: Path) -> Callable[[Sequence[str]], Tensor]:
    """prompts -> tokens [B, 12] int64, by the `CLIPTokenizer` in folder."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def tokenize(prompts: Sequence[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
        return tokenizer(list(prompts), return_tensors="pt", **options).input_ids

    return tokenize
