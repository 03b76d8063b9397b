"""The published scores once more, written from the papers in another way than in rlr_core, for comparison.

Pictures pass through PIL and torchvision as in the releases; networks are transformers' or plain torch.
"""

from __future__ import annotations

import math

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def to_pil(image: Tensor) -> Image.Image:
    """A picture [3, H, W] in [0, 1], rounded to 8 bits."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255


def clip_preprocess(image: Tensor, size: int) -> Tensor:
    """OpenAI's: shorter side bicubic, center crop. [3, S, S] in [0, 1]."""
    resized = functional.resize(to_pil(image), size, InterpolationMode.BICUBIC)
    return from_pil(functional.center_crop(resized, size))


def hugging_face_preprocess(image: Tensor, size: int) -> Tensor:
    """transformers' CLIPImageProcessor up to the normalization. [3, S, S] in [0, 1]."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_normalize=False,
    )
    return torch.as_tensor(numpy.asarray(processor(to_pil(image))["pixel_values"][0]))


def hps_preprocess(image: Tensor, size: int) -> Tensor:
    """HPSv2's: longer side bicubic, black bars on both sides. [3, S, S] in [0, 1]."""
    picture = to_pil(image)
    scale = size / max(picture.size)
    small = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return from_pil(canvas)


def llava_preprocess(image: Tensor, size: int) -> Tensor:
    """LLaVA's and VQAScore's: bars of the mean color to a square, then bicubic. [3, S, S] in [0, 1]."""
    picture = to_pil(image)
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in MEAN.flatten().tolist()))
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return from_pil(canvas.resize((size, size), Image.Resampling.BICUBIC))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())


def aesthetic(embedding: Tensor, head: dict[str, Tensor]) -> Tensor:
    """The five layers of the published head, in float64."""
    x = (embedding / embedding.norm(dim=-1, keepdim=True)).double()
    for index in (0, 2, 4, 6, 7):
        x = x @ head[f"layers.{index}.weight"].double().T + head[f"layers.{index}.bias"].double()
    return x[:, 0]


def hugging_face_embeddings(model, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text embedding of a CLIPModel, by its own layers; pixels [B, 3, S, S] in [0, 1]."""
    seen = model.vision_model(pixel_values=(pixels - MEAN) / STD).pooler_output
    read = model.text_model(input_ids=tokens).pooler_output
    return model.visual_projection(seen), model.text_projection(read)


def image_reward(tensors: dict[str, Tensor], pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """ImageReward from its weights in plain torch: ViT, BERT with cross-attention, MLP, standardized.

    pixels [B, 3, S, S] in [0, 1], tokens and mask [B, L].
    """
    patches = _vit({k[20:]: v for k, v in tensors.items() if k.startswith("blip.visual_encoder.")}, pixels)
    text = {k[18:]: v for k, v in tensors.items() if k.startswith("blip.text_encoder.")}
    x = text["embeddings.word_embeddings.weight"][tokens]
    x = x + text["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = _norm(text, "embeddings.LayerNorm", x, 1e-12)
    hidden = (1 - mask[:, None, None].to(x.dtype)) * -1e9
    layers = sum(name.endswith("intermediate.dense.weight") for name in text)
    for index in range(layers):
        root = f"encoder.layer.{index}."
        x = _bert_attention(text, root + "attention.", x, x, hidden)
        x = _bert_attention(text, root + "crossattention.", x, patches, None)
        wide = F.gelu(_linear(text, root + "intermediate.dense", x))
        x = _norm(text, root + "output.LayerNorm", x + _linear(text, root + "output.dense", wide), 1e-12)
    y = x[:, 0]
    for index in (0, 2, 4, 6, 7):
        y = _linear(tensors, f"mlp.layers.{index}", y)
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


def _vit(w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """A pre-norm ViT, all tokens out, heads of width 64."""
    patch = w["patch_embed.proj.weight"].shape[-1]
    x = (pixels - MEAN) / STD
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for index in range(sum(name.endswith("qkv.weight") for name in w)):
        root = f"blocks.{index}."
        q, k, v = _linear(w, root + "attn.qkv", _norm(w, root + "norm1", x, 1e-6)).chunk(3, -1)
        x = x + _linear(w, root + "attn.proj", _attend(q, k, v, None))
        wide = F.gelu(_linear(w, root + "mlp.fc1", _norm(w, root + "norm2", x, 1e-6)))
        x = x + _linear(w, root + "mlp.fc2", wide)
    return _norm(w, "norm", x, 1e-6)


def _bert_attention(
    w: dict[str, Tensor], root: str, x: Tensor, source: Tensor, hidden: Tensor | None
) -> Tensor:
    q = _linear(w, root + "self.query", x)
    k, v = _linear(w, root + "self.key", source), _linear(w, root + "self.value", source)
    out = _linear(w, root + "output.dense", _attend(q, k, v, hidden))
    return _norm(w, root + "output.LayerNorm", x + out, 1e-12)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """Softmax attention with heads of width 64."""
    q, k, v = (z.unflatten(-1, (-1, 64)).transpose(1, 2) for z in (q, k, v))
    scores = q @ k.mT / math.sqrt(64)
    if hidden is not None:
        scores = scores + hidden
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def vqascore(t5, vision, projector: dict[str, Tensor], pixels: Tensor, before, after, answer) -> Tensor:
    """One picture's VQAScore with transformers' CLIP and T5: exp(-cross entropy of the answer).

    pixels [1, 3, S, S] in [0, 1]; before, after, answer: lists of token ids.
    """
    states = vision(pixel_values=(pixels - MEAN) / STD, output_hidden_states=True).hidden_states
    patches = states[-2][:, 1:]
    patches = F.gelu(patches @ projector["0.weight"].T + projector["0.bias"])
    patches = patches @ projector["2.weight"].T + projector["2.bias"]
    table = t5.get_input_embeddings().weight
    embeddings = torch.cat([table[before][None], patches, table[after][None]], 1)
    return (-t5(inputs_embeds=embeddings, labels=torch.tensor([answer])).loss).exp()
