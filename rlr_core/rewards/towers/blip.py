"""BLIP's two towers, frozen: timm's ViT for the picture, a BERT that attends to it for the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlr_core.rewards.files import WeightFile, fill, wrong_architecture
from rlr_core.rewards.towers.clip import on_no_memory
from rlr_core.rewards.towers.precision import run_in
from rlr_core.rewards.towers.preprocess import normalize


def bert_tokenizer(path: Path):
    """BERT's tokenizer from a vocab.txt, with BLIP's two tokens [DEC] and [ENC] after it."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(path), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


class BlipTower:
    """BLIP's image tower, timm's ViT; lends its patch features to other rewards as ImageTower does."""

    def __init__(
        self, tensors: dict[str, Tensor], path: Path, needed: WeightFile, checkpointing: bool = False
    ):
        """tensors: BLIP's visual_encoder; the sizes are read off their shapes."""
        from timm.models.vision_transformer import VisionTransformer

        if "pos_embed" not in tensors or "patch_embed.proj.weight" not in tensors:
            raise wrong_architecture(path, needed, missing=["blip.visual_encoder.pos_embed"])
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
        self.network = fill(network, tensors, path, needed)
        self.network.set_grad_checkpointing(checkpointing)

    def to(self, device: torch.device | str) -> None:
        """Move to a device; the dtype stays that of the reward it belongs to."""
        self.network.to(device)

    def tokens(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """Patch tokens [B, len(layers), N, width], float32, after each of the given layers (from 0)."""

        def network(x: Tensor) -> Tensor:
            out: Any = self.network.forward_intermediates(
                x, indices=list(layers), output_fmt="NLC", intermediates_only=True
            )
            return torch.stack(out, 1)

        first = next(self.network.parameters())
        return run_in(first.dtype, network, normalize(pixels.to(first.device)))


def blip_text_tower(tensors: dict[str, Tensor], path: Path, needed: WeightFile) -> Any:
    """BLIP's BERT whose layers also attend to the picture's tokens."""
    from transformers import BlipTextConfig, BlipTextModel

    words = tensors.get("embeddings.word_embeddings.weight")
    cross = tensors.get("encoder.layer.0.crossattention.self.key.weight")
    if words is None or cross is None:
        missing = "word_embeddings.weight" if words is None else "crossattention.self.key.weight"
        raise wrong_architecture(path, needed, missing=[f"blip.text_encoder … {missing}"])
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
    return fill(network, {k: v for k, v in tensors.items() if k != "embeddings.position_ids"}, path, needed)
