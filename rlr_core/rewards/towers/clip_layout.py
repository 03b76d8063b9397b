"""Which CLIP a file holds: Hugging Face names turned into open_clip's, sizes read off the tensors' shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlr_core.rewards.files import WeightFile, read_tensors, select, wrong_architecture

HEAD_WIDTHS = {1280: 80, 1664: 104}
"""Widths of image towers whose attention heads are not 64 wide: ViT-H, ViT-bigG. No shape tells."""

_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


class ClipFile(NamedTuple):
    """A CLIP file's tensors by open_clip's names, tower by tower."""

    path: Path
    vision: dict[str, Tensor]
    """Keys of open_clip's VisionTransformer; `proj` is missing when the file has no projection."""
    text: dict[str, Tensor]
    """Keys of open_clip's TextTransformer; empty for a file with the image tower alone."""
    logit_scale: Tensor | None
    """The logarithm of CLIP's temperature, a scalar."""
    quick_gelu: bool


class VisionSizes(NamedTuple):
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    output_dim: int


class TextSizes(NamedTuple):
    context_length: int
    vocab_size: int
    width: int
    heads: int
    layers: int
    mlp_ratio: float
    output_dim: int


def read_clip(path: Path, needed: WeightFile, quick_gelu: bool | None = None) -> ClipFile:
    """Read a CLIP in open_clip's layout, in Hugging Face's, or as a ComfyUI clip_vision file.

    quick_gelu: the activation, which no tensor tells; None takes it from a config.json beside the file, else
    from the size: OpenAI trained the widths 768 and 1024 with it, LAION the wider ones without.
    """
    return as_clip(read_tensors(path, needed), path, needed, quick_gelu)


def as_clip(
    tensors: dict[str, Tensor], path: Path, needed: WeightFile, quick_gelu: bool | None = None
) -> ClipFile:
    """The same for tensors that were read already."""
    if (
        "embeddings.patch_embedding.weight" in tensors
    ):  # transformers 5 saves a bare CLIPVisionModel like this
        outside = ("visual_projection.", "logit_scale")
        tensors = {n if n.startswith(outside) else f"vision_model.{n}": value for n, value in tensors.items()}
    if any(name.startswith("vision_model.") for name in tensors):
        vision, text = _from_hugging_face(tensors)
    else:
        vision = select(tensors, "visual.")
        text = {name: value for name, value in tensors.items() if name.startswith(_OPEN_CLIP_TEXT)}
    if "conv1.weight" not in vision or "positional_embedding" not in vision:
        raise wrong_architecture(path, needed, missing=["visual.conv1.weight"])
    if quick_gelu is None:
        quick_gelu = _activation(path, vision["conv1.weight"].shape[0])
    return ClipFile(path, vision, text, tensors.get("logit_scale"), quick_gelu)


def vision_sizes(vision: dict[str, Tensor]) -> VisionSizes:
    """The architecture of an image tower, read off its shapes."""
    width, _, patch, _ = vision["conv1.weight"].shape
    side = round((vision["positional_embedding"].shape[0] - 1) ** 0.5)
    layers, mlp_ratio = _depth(vision, width)
    output_dim = vision["proj"].shape[1] if "proj" in vision else width
    heads = max(1, width // HEAD_WIDTHS.get(width, 64))
    return VisionSizes(side * patch, patch, width, layers, heads, mlp_ratio, output_dim)


def text_sizes(text: dict[str, Tensor]) -> TextSizes:
    """The architecture of a text tower, read off its shapes."""
    vocabulary, width = text["token_embedding.weight"].shape
    layers, mlp_ratio = _depth(text, width)
    context, output_dim = text["positional_embedding"].shape[0], text["text_projection"].shape[1]
    return TextSizes(context, vocabulary, width, max(1, width // 64), layers, mlp_ratio, output_dim)


def _depth(tower: dict[str, Tensor], width: int) -> tuple[int, float]:
    """Number of layers, and hidden width over width, of a transformer."""
    hidden = [value.shape[0] for name, value in tower.items() if name.endswith(".mlp.c_fc.weight")]
    return len(hidden), (hidden[0] / width if hidden else 4.0)


def _activation(path: Path, width: int) -> bool:
    """Whether the CLIP in this file uses quick-gelu."""
    config = path.parent / "config.json"
    if config.is_file():
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            settings = {}
        settings = settings.get("vision_config") or settings
        if "hidden_act" in settings:
            return settings["hidden_act"] == "quick_gelu"
    return width <= 1024


def _from_hugging_face(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Image and text tower of a CLIPModel's tensors, by open_clip's names."""
    vision = _tower(select(tensors, "vision_model."), _VISION)
    text = _tower(select(tensors, "text_model."), _TEXT)
    if "visual_projection.weight" in tensors:
        vision["proj"] = tensors["visual_projection.weight"].T.contiguous()
    if text and "text_projection.weight" in tensors:
        text["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    return vision, text


def _tower(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """One tower: q, k and v stacked as open_clip stacks them, the other names translated."""
    out = {}
    for name, value in tensors.items():
        if name in names:
            out[names[name]] = value
        elif name.startswith("encoder.layers."):
            _, _, index, rest = name.split(".", 3)
            stem, kind = rest.rsplit(".", 1)
            block = f"transformer.resblocks.{index}"
            if stem in _LAYER:
                out[f"{block}.{_LAYER[stem]}.{kind}"] = value
            elif stem == "self_attn.q_proj":
                k, v = (name.replace("q_proj", other) for other in ("k_proj", "v_proj"))
                if k in tensors and v in tensors:
                    stacked = torch.cat([value, tensors[k], tensors[v]])
                    out[f"{block}.attn.in_proj_{kind}"] = stacked
    return out
