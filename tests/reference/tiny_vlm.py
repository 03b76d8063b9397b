"""A random Qwen3-VL of a few layers, saved as a folder of transformers with its tokenizer and processor."""

from __future__ import annotations

from pathlib import Path

import torch

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL = (*SPECIAL, "<|image_pad|>", "<|video_pad|>")
WORDS = "Yes yes No no user assistant Does this picture show Is it a an cat dog red sign Answer with or noise"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_vlm(folder: Path, seed: int = 0) -> Path:
    """The folder, written."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    words = [*SPECIAL, "<unk>", *dict.fromkeys(WORDS.split()), '"', "?", "."]
    ids = {word: number for number, word in enumerate(words)}
    bare = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        unk_token="<unk>",
        pad_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL),
    )
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 65536, "longest_edge": 16777216}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, size=size, **half),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=16, **half),
        chat_template=TEMPLATE,
    )
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():  # so that the picture matters to the answer
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15 if "visual" in name else 0.08)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
