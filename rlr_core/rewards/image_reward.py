"""ImageReward: BLIP reads picture and prompt together, an MLP turns that into a score (arXiv 2304.05977)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlr_core.errors import UserError
from rlr_core.rewards.aesthetic import head_from
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import WeightFile, fill, locate, read_tensors, select, wrong_architecture
from rlr_core.rewards.towers.clip import on_no_memory
from rlr_core.rewards.towers.precision import as_dtype, default_dtype, run_in
from rlr_core.rewards.towers.preprocess import crop_shorter_side, normalise

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
        self.tower = BlipTower(select(tensors, "blip.visual_encoder."), path, checkpointing)
        self.text = _text_tower(select(tensors, "blip.text_encoder."), path)
        self.mlp = head_from(tensors, path, WEIGHTS, prefix="mlp.layers.")
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
        if self.device is None:
            self.to(images.device)
        tokens = self.tokenize(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=PROMPT_TOKENS,
            return_tensors="pt",
        ).to(self.device)

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

        pixels = normalise(crop_shorter_side(images.to(self.device), self.tower.size))
        features = run_in(next(self.text.parameters()).dtype, read_together, pixels)
        return (self.mlp(features).squeeze(-1) - MEAN) / STD


def bert_tokenizer(path: Path):
    """BERT's tokenizer from a vocab.txt, with BLIP's two tokens [DEC] and [ENC] after it."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(path), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


class BlipTower:
    """BLIP's image tower, timm's ViT; lends its patch features to other rewards as ImageTower does."""

    def __init__(self, tensors: dict[str, Tensor], path: Path, checkpointing: bool = False):
        """tensors: BLIP's visual_encoder; the sizes are read off their shapes."""
        from timm.models.vision_transformer import VisionTransformer

        if "pos_embed" not in tensors or "patch_embed.proj.weight" not in tensors:
            raise wrong_architecture(path, WEIGHTS, missing=["blip.visual_encoder.pos_embed"])
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        self.size = round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch
        self.depth = sum(name.endswith("attn.qkv.weight") for name in tensors)
        with on_no_memory():
            network = VisionTransformer(
                img_size=self.size,
                patch_size=patch,
                embed_dim=width,
                depth=self.depth,
                num_heads=max(1, width // 64),
                num_classes=0,
                global_pool="",
            )
        self.network = fill(network, tensors, path, WEIGHTS)
        self.network.set_grad_checkpointing(checkpointing)

    def to(self, device: torch.device | str) -> None:
        """Move to a device; the dtype stays that of the reward it belongs to."""
        self.network.to(device)

    def tokens(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """Patch tokens [B, len(layers), N, width], float32, after each of the given layers (from 0)."""

        def network(x: Tensor) -> Tensor:
            out = self.network.forward_intermediates(
                x, indices=list(layers), output_fmt="NLC", intermediates_only=True
            )
            return torch.stack(out, 1)

        first = next(self.network.parameters())
        return run_in(first.dtype, network, normalise(pixels.to(first.device)))


def _text_tower(tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """BLIP's BERT whose layers also attend to the picture's tokens."""
    from transformers import BlipTextConfig, BlipTextModel

    words = tensors.get("embeddings.word_embeddings.weight")
    cross = tensors.get("encoder.layer.0.crossattention.self.key.weight")
    if words is None or cross is None:
        missing = "word_embeddings.weight" if words is None else "crossattention.self.key.weight"
        raise wrong_architecture(path, WEIGHTS, missing=[f"blip.text_encoder … {missing}"])
    config = BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=cross.shape[1],
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=sum(name.endswith("attention.self.query.weight") for name in tensors) // 2,
        num_attention_heads=max(1, words.shape[1] // 64),
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        bos_token_id=None,
        is_decoder=True,  # builds the layers that attend to the picture
    )
    with on_no_memory():
        network = BlipTextModel(config, add_pooling_layer=any(name.startswith("pooler.") for name in tensors))
    return fill(network, {k: v for k, v in tensors.items() if k != "embeddings.position_ids"}, path, WEIGHTS)
