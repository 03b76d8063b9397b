"""A tiny StableDiffusionPipeline with random weights, written as diffusers writes it (about 1 MB)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "photo", "of", "cat", "dog", "red", "blue", "circle", "square", "above")


def write_tiny_sd(folder: Path, prediction_type: str = "epsilon", seed: int = 0, **scheduler: Any) -> Path:
    """Write the pipeline into `folder` and return it. Further keywords go into scheduler_config.json."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tiny_vocabulary()),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
        **scheduler,
    }
    DDIMScheduler(**settings).save_pretrained(folder / "scheduler")
    write_tiny_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.35.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_vocabulary() -> dict[str, int]:
    """CLIP's special tokens, every letter with and without the end of a word, and a few whole words."""
    tokens = ["<|startoftext|>", "<|endoftext|>"]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens += letters + [f"{letter}</w>" for letter in letters]
    for word in WORDS:
        tokens += [token for token in _pieces(word) if token not in tokens]
    return {token: index for index, token in enumerate(tokens)}


def write_tiny_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer (vocab.json, merges.txt) that knows WORDS whole and spells out everything else."""
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (pair := f"{parts[0]} {parts[1]}") not in merges:
                merges.append(pair)
            parts = [parts[0] + parts[1], *parts[2:]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(tiny_vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": "<|endoftext|>"}  # fmt: skip
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def _pieces(word: str) -> list[str]:
    """What merging a word from the left makes: 'ca', 'cat</w>' for 'cat'."""
    return [word[:n] for n in range(2, len(word))] + [f"{word}</w>"]
