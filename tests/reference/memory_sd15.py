"""The memory table of RLR Train's help page: Stable Diffusion 1.5 at its real size, on tensors without data.

    python tests/reference/memory_sd15.py

Everything runs on the meta device, forwards and backwards; what is alive at a time is added up by storages.
Attention keeps its inputs and its output, as the fused kernels on a GPU do. Weights are bf16, the LoRA is
float32, and kernels get the margin that the check before a run gives them.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlr_core.diffusion.models.clip_tokenizer import clip_tokenizer
from rlr_core.diffusion.models.stable_diffusion import StableDiffusion
from rlr_core.lora.attach import attach
from rlr_core.training.preflight import GIB, MARGIN

META = torch.device("meta")
SETTINGS = [
    (512, 4, False),
    (512, 2, False),
    (512, 1, False),
    (512, 4, True),
    (384, 4, False),
    (256, 4, False),
]
"""Side of the pictures, micro_batch, gradient_checkpointing."""


class Alive(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        out = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._take(tensor.untyped_storage())
        return out

    def _take(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.finalize(storage, self._drop, key, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _drop(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size


class Attention(torch.autograd.Function):
    """What fused attention keeps: inputs, output, and a number for each query."""

    @staticmethod
    def forward(context: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        context.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


def stable_diffusion() -> StableDiffusion:
    """Version 1.5 without weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with META:
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    return StableDiffusion(
        name="sd15", unet=unet, vae=vae, text_encoder=text, tokenizer=clip_tokenizer(), scheduler_config={},
        device=META, dtype=torch.bfloat16,
    )  # fmt: skip


def most(function: Any) -> int:
    """Most bytes alive in a forward and backward pass, beside what there was before."""
    with Alive() as alive:
        function().sum().backward()
    return alive.most


def gib(side: int, micro_batch: int, checkpointing: bool) -> float:
    """Weights and the worst moment of an update, in GiB."""
    import open_clip

    model = stable_diffusion()
    adapter = attach(model, rank=8)
    model.gradient_checkpointing(checkpointing)
    with META:
        tower = (
            open_clip.create_model("ViT-L-14", device="meta").visual.to(torch.bfloat16).requires_grad_(False)
        )
    networks = (model.unet, model.vae, tower)  # the text encoder has left the device
    weights = sum(p.nbytes for network in networks for p in network.parameters())
    weights += 3 * sum(p.nbytes for p in adapter.parameters())  # Adam keeps two numbers for each
    shape = model.latent_shape(side, side)

    def step() -> torch.Tensor:
        latents = torch.empty(micro_batch, *shape, device=META, requires_grad=True)
        rows = torch.empty(2 * micro_batch, 77, 768, device=META, dtype=model.dtype)
        return model.denoise(torch.cat([latents, latents]), 500.0, {"prompt": rows})

    def picture() -> torch.Tensor:
        latents = torch.empty(1, *shape, device=META, requires_grad=True)
        small = F.interpolate(model.decode(latents), (224, 224), mode="bicubic", antialias=True)
        return tower(small.to(torch.bfloat16))

    return (weights + MARGIN * max(most(step), most(picture))) / GIB


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    F.scaled_dot_product_attention = lambda q, k, v, *rest, **named: Attention.apply(q, k, v)
    print("| Pictures | micro_batch | gradient_checkpointing | GiB, about |\n|---|---|---|---|")
    for side, micro_batch, checkpointing in SETTINGS:
        found = gib(side, micro_batch, checkpointing)
        print(f"| {side} x {side} | {micro_batch} | {'on' if checkpointing else 'off'} | {found:.1f} |")
