"""Stable Diffusion XL: a diffusers folder or a .safetensors checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlr_core.common import weights as weight_files
from rlr_core.diffusion.models import folders, sdxl_checkpoint
from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.peft_layers import has_adapter
from rlr_core.diffusion.models.unet import ENCODE_BATCH, UNetModel, refuse_editing_models

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

PIPELINE = "StableDiffusionXLPipeline"
ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")


class StableDiffusionXL(UNetModel):
    """A UNet that is told the prompt by two text encoders, the pooled prompt, and the picture's size."""

    family = "stable-diffusion-xl"
    kohya_prefixes = {
        "unet": ("lora_unet_",),
        "text_encoder": ("lora_te1_",),
        "text_encoder_2": ("lora_te2_",),
    }
    vae_overflows = True
    text_encoder: nn.Module
    text_encoder_2: nn.Module

    def __init__(
        self,
        *,
        name: str,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: nn.Module,
        text_encoder_2: nn.Module,
        tokenizers: Sequence[Any],
        scheduler_config: dict[str, Any],
        zero_empty_prompt: bool,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Freeze the parts and move them to the device.

        tokenizers: of both text encoders; scheduler_config: a scheduler_config.json; zero_empty_prompt:
        whether no prompt is zeros instead of what the encoders make of ''.
        """
        super().__init__(
            name=name,
            unet=unet,
            vae=vae,
            text_encoders={"text_encoder": text_encoder, "text_encoder_2": text_encoder_2},
            scheduler_config=scheduler_config,
            device=device,
            dtype=dtype,
        )
        self.tokenizers = tuple(tokenizers)
        self.zero_empty_prompt = zero_empty_prompt
        self._sizes: dict[tuple[int, int], Tensor] = {}

    @property
    def architecture(self) -> str:
        return "stable-diffusion-xl-v1-base"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if path.is_dir():
            return folders.pipeline_class(path) == PIPELINE
        return weight_files.kind(path) == "sdxl"

    @classmethod
    def load(cls, path: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusionXL:
        parts = _load_folder(path, dtype) if path.is_dir() else sdxl_checkpoint.load_parts(path, dtype)
        refuse_editing_models(path, parts["unet"])
        return cls(name=path.name, **parts, device=device, dtype=dtype)

    # --- prompts ---

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """{'prompt': [N, L, D], 'pooled': [N, P]} of both text encoders, as diffusers' pipeline feeds them.

        {'tokens': [N, L], 'tokens_2': [N, L], 'filled': [N, 1]} while an adapter is in one of them; filled is
        0 for prompts that stand for none at all. Prompts longer than L tokens are cut, with a warning.
        """
        self.warn_of_long(prompts, self.tokenizers[0], self.tokenizers[0].model_max_length)
        tokens = [
            tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(self.device)
            for tokenizer in self.tokenizers
        ]
        filled = torch.tensor([[float(bool(prompt) or not self.zero_empty_prompt)] for prompt in prompts])
        filled = filled.to(self.device, self.dtype)
        if has_adapter(self.text_encoder) or has_adapter(self.text_encoder_2):
            return {"tokens": tokens[0], "tokens_2": tokens[1], "filled": filled}
        for network in ENCODERS:
            getattr(self, network).to(self.device)
        with torch.no_grad():
            pieces = zip(*(part.split(ENCODE_BATCH) for part in (*tokens, filled)), strict=True)
            prompt, pooled = zip(*(self._encode(*piece) for piece in pieces), strict=True)
        return {"prompt": torch.cat(prompt), "pooled": torch.cat(pooled)}

    def _encode(self, tokens: Tensor, tokens_2: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Both encoders' last but one hidden states [N, L, D] and the second's pooled output [N, P];
        differentiable in the adapter."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens_2, output_hidden_states=True)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return hidden * filled[:, :, None], second[0] * filled

    def blank_prompts(self, count: int) -> Rows:
        length, width = self.tokenizers[0].model_max_length, self.unet.config["cross_attention_dim"]
        sizes = {"prompt": (length, width), "pooled": (self._pooled_width(),)}
        return {
            name: torch.zeros(count, *size, device=self.device, dtype=self.dtype)
            for name, size in sizes.items()
        }

    def _pooled_width(self) -> int:
        """Of the pooled prompt: what the UNet is told beside the six numbers of the size."""
        config = self.unet.config
        return config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]

    def release_text_encoders(self) -> None:
        for network in ENCODERS:
            if not has_adapter(getattr(self, network)):
                getattr(self, network).to("cpu")

    # --- sampling ---

    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """eps or v [B, 4, h, w], float32; conditioning: as `encode_prompts` gives it."""
        prompt, pooled = self._encoded(conditioning)
        sizes = self._size(latents.shape[-2], latents.shape[-1]).expand(len(latents), -1)
        output = self.unet(
            latents.to(self.dtype),
            latents.new_full((latents.shape[0],), timestep),  # filled on the device: no wait for the GPU
            encoder_hidden_states=prompt,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return output.float()

    def _size(self, height: int, width: int) -> Tensor:
        """[1, 6]: what the UNet is told of a latent's size: that of the original, no crop, that of the
        picture."""
        if (height, width) not in self._sizes:
            pixels = [height * self.latent_scale, width * self.latent_scale]
            self._sizes[height, width] = torch.tensor(
                [[*pixels, 0, 0, *pixels]], dtype=self.dtype, device=self.device
            )
        return self._sizes[height, width]

    def _encoded(self, conditioning: Rows) -> tuple[Tensor, Tensor]:
        """Encoded and pooled prompts. Token ids are encoded as the adapter is now."""
        if "prompt" in conditioning:
            return conditioning["prompt"], conditioning["pooled"]
        tokens = (conditioning["tokens"], conditioning["tokens_2"], conditioning["filled"])
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._encode, *tokens, use_reentrant=False, preserve_rng_state=False)
        return self._encode(*tokens)

    # --- LoRA files ---

    def lora_key_aliases(self, layer: str, layout: str) -> list[str]:
        """Text encoders' as ever; of the UNet, also the names of the original code."""
        network, _, path = layer.partition(".")
        if network != "unet" or layout != "kohya":
            return super().lora_key_aliases(layer, layout)
        original = _original_path(path, self.unet.config["layers_per_block"])
        return [f"lora_unet_{original.replace('.', '_')}"]


def _original_path(path: str, layers: int) -> str:
    """The path of a transformer's layer in the original code. layers: per block."""

    def numbered(match: re.Match) -> str:
        side, block, place = match[1], int(match[2]), int(match[3])
        number = 1 + block * (layers + 1) + place if side == "down" else block * (layers + 1) + place
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.1"

    path = re.sub(r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)", numbered, path)
    return re.sub(r"^mid_block\.attentions\.0", "middle_block.1", path)


def _load_folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a StableDiffusionXLPipeline folder, as keywords of `StableDiffusionXL`. No network."""
    folders.check_parts(folder, ("unet", "vae", *ENCODERS), TOKENIZERS)

    from diffusers import AutoencoderKL, UNet2DConditionModel

    encoders = [folders.load_clip(folder / name, dtype, name != ENCODERS[0]) for name in ENCODERS]
    tokenizers = [folders.load_tokenizer(folder / name, clip=True) for name in TOKENIZERS]
    for tokenizer, encoder, name in zip(tokenizers, encoders, TOKENIZERS, strict=True):
        folders.check_vocabulary(tokenizer, encoder, folder / name)
    return {
        "unet": folders.load_network(UNet2DConditionModel, folder / "unet", dtype),
        "vae": folders.load_network(AutoencoderKL, folder / "vae", dtype),
        **dict(zip(ENCODERS, encoders, strict=True)),
        "tokenizers": tokenizers,
        "scheduler_config": folders.scheduler_config(folder, "DDIMScheduler"),
        "zero_empty_prompt": bool(folders.index(folder).get("force_zeros_for_empty_prompt", True)),
    }
