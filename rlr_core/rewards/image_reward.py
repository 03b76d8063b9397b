"""ImageReward: BLIP reads picture and prompt together, an MLP turns that into a score (arXiv 2304.05977)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import WeightFile, locate, read_tensors, select
from rlr_core.rewards.towers.blip import BlipTower, bert_tokenizer, blip_text_tower
from rlr_core.rewards.towers.precision import as_dtype, default_dtype, run_in
from rlr_core.rewards.towers.preprocess import crop_shorter_side, normalize
from rlr_core.rewards.towers.score_head import score_head

WEIGHTS = WeightFile(
    "weights",
    ("ImageReward.pt",),
    "ImageReward v1.0 (BLIP ViT-L/16, BERT with cross-attention, MLP)",
    "https://huggingface.co/THUDM/ImageReward (ImageReward.pt)",
)
VOCABULARY = WeightFile(
    "vocabulary",
    ("bert-base-uncased-vocab.txt", "bert-base-uncased/vocab.txt"),
    "BERT's vocabulary (30,522 lines)",
    "https://huggingface.co/bert-base-uncased (vocab.txt, renamed)",
)
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the score over the release's own data
PROMPT_TOKENS = 35


class ImageReward(Reward):
    """(mlp(BERT(prompt | ViT(picture))[CLS]) - 0.167) / 1.033; about -2 to 2.

    The text tower attends to the picture, so it stays; only the prompts' tokens are kept between calls.
    """

    name = "image_reward"
    needs_prompt = True
    range = (-2.3, 2.0)
    files = (WEIGHTS, VOCABULARY)

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        vocabulary: str | os.PathLike | None = None,
        dtype: str | torch.dtype | None = None,
        checkpointing: bool = False,
    ):
        """weights, vocabulary: the two files; dtype: see ImageTower; checkpointing: of the ViT."""
        path = locate(WEIGHTS, weights)
        self.tokenize = bert_tokenizer(locate(VOCABULARY, vocabulary, beside=path))
        tensors = read_tensors(path, WEIGHTS)
        self.tower = BlipTower(select(tensors, "blip.visual_encoder."), path, WEIGHTS, checkpointing)
        self.text = blip_text_tower(select(tensors, "blip.text_encoder."), path, WEIGHTS)
        self.mlp = score_head(tensors, path, WEIGHTS, prefix="mlp.layers.")
        if len(self.tokenize) != self.text.config.vocab_size:
            raise UserError(
                f"The vocabulary has {len(self.tokenize)} words, [DEC] and [ENC] included, and {path.name} "
                f"was trained with {self.text.config.vocab_size}. {VOCABULARY.advice()}"
            )
        self.dtype = as_dtype(dtype)
        self.device: torch.device | None = None

    def to(self, device: torch.device | str) -> ImageReward:
        self.device = torch.device(device)
        dtype = self.dtype or default_dtype(self.device)
        with torch.inference_mode(False):
            self.tower.network.to(self.device, dtype)
            self.text.to(self.device, dtype)
            self.mlp.to(self.device)
        return self

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        device = self.device or images.device
        if self.device is None:
            self.to(device)
        tokens = self.tokenize(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=PROMPT_TOKENS,
            return_tensors="pt",
        ).to(device)

        def read_together(pixels: Tensor) -> Tensor:  # [B, 3, S, S] -> [B, 768]
            patches = self.tower.network(pixels)
            mask = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
            out = self.text(
                tokens.input_ids,
                attention_mask=tokens.attention_mask,
                encoder_hidden_states=patches,
                encoder_attention_mask=mask,
                is_decoder=False,
            )
            return out.last_hidden_state[:, 0]

        pixels = normalize(crop_shorter_side(images.to(device), self.tower.size))
        features = run_in(next(self.text.parameters()).dtype, read_together, pixels)
        return (self.mlp(features).squeeze(-1) - MEAN) / STD
