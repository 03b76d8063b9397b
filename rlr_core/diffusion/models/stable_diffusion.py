"""Stable Diffusion 1.x and 2.x, eps and v-prediction: a diffusers folder or a .safetensors checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlr_core.common import weights as weight_files
from rlr_core.diffusion.models import folders, ldm_checkpoint
from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.peft_layers import has_adapter
from rlr_core.diffusion.models.unet import ENCODE_BATCH, UNetModel, refuse_editing_models

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

PIPELINE = "StableDiffusionPipeline"


class StableDiffusion(UNetModel):
    """A UNet on the latents [B, 4, H/8, W/8] of a KL autoencoder, told the prompt by a CLIP text encoder."""

    family = "stable-diffusion"
    text_encoder: nn.Module

    def __init__(
        self,
        *,
        name: str,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: nn.Module,
        tokenizer: Any,
        scheduler_config: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Freeze the parts and move them to the device; scheduler_config is a scheduler_config.json."""
        super().__init__(
            name=name,
            unet=unet,
            vae=vae,
            text_encoders={"text_encoder": text_encoder},
            scheduler_config=scheduler_config,
            device=device,
            dtype=dtype,
        )
        self.tokenizer = tokenizer
        positions: Any = text_encoder.config
        self.prompt_length = min(tokenizer.model_max_length, positions.max_position_embeddings)

    @property
    def architecture(self) -> str:
        v_prediction = self.prediction == "v_prediction"
        version_2 = "stable-diffusion-v2-768-v" if v_prediction else "stable-diffusion-v2-512"
        by_width = {768: "stable-diffusion-v1", 1024: version_2}  # of the text encoder
        return by_width.get(self.unet.config["cross_attention_dim"], self.family)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if path.is_dir():
            return folders.pipeline_class(path) == PIPELINE
        return weight_files.kind(path) in ldm_checkpoint.KINDS

    @classmethod
    def load(cls, path: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
        parts = _load_folder(path, dtype) if path.is_dir() else ldm_checkpoint.load_parts(path, dtype)
        refuse_editing_models(path, parts["unet"])
        return cls(name=path.name, **parts, device=device, dtype=dtype)

    # --- prompts ---

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """{'prompt': [N, L, D]}: the text encoder's last hidden states, as diffusers' pipeline feeds them.

        {'tokens': [N, L]}, integers, while an adapter is in the text encoder. Prompts longer than its L
        tokens are cut, with a warning.
        """
        self.warn_of_long(prompts, self.tokenizer, self.prompt_length)
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.prompt_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)
        if has_adapter(self.text_encoder):
            return {"tokens": tokens}
        self.text_encoder.to(self.device)
        with torch.no_grad():
            rows = [self._encode(some) for some in tokens.split(ENCODE_BATCH)]
        return {"prompt": torch.cat(rows)}

    def _encode(self, tokens: Tensor) -> Tensor:
        """Last hidden states [N, L, D] of token ids [N, L]; differentiable in the adapter."""
        return self.text_encoder(tokens)[0]

    def blank_prompts(self, count: int) -> Rows:
        width = self.unet.config["cross_attention_dim"]
        return {"prompt": torch.zeros(count, self.prompt_length, width, device=self.device, dtype=self.dtype)}

    def release_text_encoders(self) -> None:
        if not has_adapter(self.text_encoder):
            self.text_encoder.to("cpu")

    # --- sampling ---

    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """eps or v [B, 4, h, w], float32; conditioning['prompt']: [B, L, D], or ['tokens']: [B, L]."""
        output = self.unet(
            latents.to(self.dtype),
            latents.new_full((latents.shape[0],), timestep),  # filled on the device: no wait for the GPU
            encoder_hidden_states=self._encoded(conditioning),
            return_dict=False,
        )[0]
        return output.float()

    def _encoded(self, conditioning: Rows) -> Tensor:
        """Encoded prompts [B, L, D]. Token ids are encoded as the adapter is now."""
        if "prompt" in conditioning:
            return conditioning["prompt"]
        tokens = conditioning["tokens"]
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._encode, tokens, use_reentrant=False, preserve_rng_state=False)
        return self._encode(tokens)


def _load_folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a StableDiffusionPipeline folder, as keywords of `StableDiffusion`. No network."""
    folders.check_parts(folder, ("unet", "vae", "text_encoder"), ("tokenizer",))

    from diffusers import AutoencoderKL, UNet2DConditionModel

    encoder = folders.load_clip(folder / "text_encoder", dtype)
    tokenizer = folders.load_tokenizer(folder / "tokenizer", clip=True)
    folders.check_vocabulary(tokenizer, encoder, folder / "tokenizer")
    return {
        "unet": folders.load_network(UNet2DConditionModel, folder / "unet", dtype),
        "vae": folders.load_network(AutoencoderKL, folder / "vae", dtype),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "scheduler_config": folders.scheduler_config(folder, "DDIMScheduler"),
    }
