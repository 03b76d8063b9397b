"""Tiny models with random weights, in the file layouts that people have, and pictures to score."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

PROMPTS = ["a photo of a cat", "two red cubes on a blue table, oil painting"]
VISION = {"image_size": 32, "layers": 3, "width": 128, "head_width": 64, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
EMBEDDING = 48


def pictures(count: int = 2, height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    """Smooth random pictures [count, 3, height, width] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def videos(count: int = 2, frames: int = 5, seed: int = 0) -> Tensor:
    """Random videos [count, frames, 3, 24, 24] in [0, 1]."""
    return pictures(count * frames, 24, 24, seed).unflatten(0, (count, frames))


def open_clip_model(quick_gelu: bool = False, seed: int = 0):
    """A tiny CLIP of open_clip's own, in eval mode."""
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model = CLIP(EMBEDDING, dict(VISION), dict(TEXT), quick_gelu=quick_gelu).eval().requires_grad_(False)
    return stir(model, seed)


def hugging_face_clip(activation: str = "gelu", seed: int = 0):
    """A tiny CLIPModel of transformers, in eval mode."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    config = CLIPConfig(
        projection_dim=EMBEDDING,
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "hidden_act": activation,
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "vocab_size": 49408,
            "hidden_act": activation,
            "eos_token_id": 49407,
            "bos_token_id": 49406,
        },
    )
    return stir(CLIPModel(config).eval().requires_grad_(False), seed)


def stir(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a random part, so that a swapped or dropped one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "logit_scale" not in name:
            noise = torch.randn(value.shape, generator=generator)
            value.data = value.data + 0.05 * noise
    return model


def save(tensors: dict[str, Tensor] | nn.Module, path: Path) -> Path:
    """Tensors, or a module's, as a .safetensors file."""
    if isinstance(tensors, nn.Module):
        tensors = tensors.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path)
    return path


def aesthetic_head(features: int = EMBEDDING, seed: int = 1) -> dict[str, Tensor]:
    """Random weights of the five linear layers, by the names in the published file."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [features, 1024, 128, 64, 16, 1]
    out = {}
    for index, (wide, narrow) in zip((0, 2, 4, 6, 7), zip(sizes, sizes[1:], strict=False), strict=True):
        out[f"layers.{index}.weight"] = torch.randn(narrow, wide, generator=generator) / wide**0.5
        out[f"layers.{index}.bias"] = torch.randn(narrow, generator=generator) * 0.1
    return out


def image_reward_tensors(vision=(32, 8, 64, 2), text=(64, 2), vocabulary: int = 200, seed: int = 2):
    """Random ImageReward weights by the published names: image tower (size, patch, width, layers), text tower
    (width, layers)."""
    (size, patch, width, layers), (text_width, text_layers) = vision, text
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    root = "blip.visual_encoder."
    shapes[root + "cls_token"] = (1, 1, width)
    shapes[root + "pos_embed"] = (1, (size // patch) ** 2 + 1, width)
    shapes[root + "patch_embed.proj.weight"] = (width, 3, patch, patch)
    shapes[root + "patch_embed.proj.bias"] = (width,)
    for index in range(layers):
        block = f"{root}blocks.{index}."
        norm(block + "norm1", width)
        linear(block + "attn.qkv", 3 * width, width)
        linear(block + "attn.proj", width, width)
        norm(block + "norm2", width)
        linear(block + "mlp.fc1", 4 * width, width)
        linear(block + "mlp.fc2", width, 4 * width)
    norm(root + "norm", width)

    root = "blip.text_encoder."
    shapes[root + "embeddings.word_embeddings.weight"] = (vocabulary, text_width)
    shapes[root + "embeddings.position_embeddings.weight"] = (512, text_width)
    norm(root + "embeddings.LayerNorm", text_width)
    for index in range(text_layers):
        for kind, source in (("attention", text_width), ("crossattention", width)):
            block = f"{root}encoder.layer.{index}.{kind}."
            linear(block + "self.query", text_width, text_width)
            linear(block + "self.key", text_width, source)
            linear(block + "self.value", text_width, source)
            linear(block + "output.dense", text_width, text_width)
            norm(block + "output.LayerNorm", text_width)
        block = f"{root}encoder.layer.{index}."
        linear(block + "intermediate.dense", 4 * text_width, text_width)
        linear(block + "output.dense", text_width, 4 * text_width)
        norm(block + "output.LayerNorm", text_width)

    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, value in tensors.items():
        if "norm" in name.lower():
            tensors[name] = value * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias") or "embed" in name or "token" in name:
            tensors[name] = value * 0.1
        else:
            tensors[name] = value * value[0].numel() ** -0.5
    tensors[root + "embeddings.position_ids"] = torch.arange(512)[None]
    tensors.update({f"mlp.{name}": value for name, value in aesthetic_head(text_width, seed).items()})
    return tensors


def bert_vocabulary(path: Path) -> Path:
    """A vocab.txt of 198 lines, whose two missing tokens BLIP adds."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ",",
        "a",
        "photo",
        "of",
        "cat",
        "two",
        "red",
        "cube",
    ]
    words += ["##s", "on", "blue", "table", "oil", "painting"]
    words += [f"word{index}" for index in range(198 - len(words))]
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def t5_tokenizer(path: Path) -> Path:
    """A tokenizer.json of words, with T5's <pad> = 0, </s> = 1 and <unk> = 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    text = "A chat between USER ASSISTANT Yes yes no Does this figure show Please answer or photo of cat"
    words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(text.split()), ":", '"', "?", ".", ",", "a", "red"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def flan_t5(width: int = 32, layers: int = 2, seed: int = 3):
    """A tiny T5 of transformers with Flan-T5's settings, in eval mode."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=128,
        d_model=width,
        d_kv=16,
        d_ff=64,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = nn.Parameter(torch.randn(128, width))  # transformers 5 ties it, Flan-T5 does not
    return stir(model.eval().requires_grad_(False), seed)


def write_config(folder: Path, activation: str) -> None:
    """A config.json as Hugging Face puts it beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": activation}}))
