"""What families with a UNet and the latents of a KL autoencoder have in common: sizes, schedule, decoder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlr_core.diffusion import kernels
from rlr_core.diffusion.models import ddim_schedule
from rlr_core.diffusion.models.base import DiffusionModel, NoiseLevel
from rlr_core.diffusion.models.decoder_checkpointing import DecoderCheckpointing
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from rlr_core.config import SamplerConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out", "time_emb_proj")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_FEED_FORWARD = ("fc1", "fc2")
TEXT_LEVEL = "text_model"  # the outermost level of a CLIP text encoder
ENCODE_BATCH = 32  # prompts per pass of the text encoder


class UNetModel(DiffusionModel):
    """A UNet on the latents [B, 4, ...] of a KL autoencoder, told the prompt by CLIP text encoders."""

    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": ATTENTION + FEED_FORWARD,
        "all": ATTENTION + FEED_FORWARD + PROJECTIONS,
    }
    text_targets = {
        "attention": TEXT_ATTENTION,
        "attention+ff": TEXT_ATTENTION + TEXT_FEED_FORWARD,
        "all": TEXT_ATTENTION + TEXT_FEED_FORWARD,
    }
    denoisers = ("unet",)
    kohya_prefixes = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_")}
    """What names in kohya's layout begin with, by network: what is written, then what else is read."""
    vae_overflows = False
    """Whether the autoencoder cannot compute in float16."""

    def __init__(
        self,
        *,
        name: str,
        unet: Any,
        vae: AutoencoderKL,
        text_encoders: dict[str, nn.Module],
        scheduler_config: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Freeze the parts and move them to the device; scheduler_config is a scheduler_config.json."""
        self.name, self.device, self.dtype = name, device, dtype
        self.unet = frozen(unet, device, dtype)
        coarse = device.type == "cpu" or (self.vae_overflows and dtype == torch.float16)
        self.vae = frozen(vae, device, torch.float32 if coarse else dtype)
        self.networks = {"unet": self.unet}
        for network, encoder in text_encoders.items():
            encoder = frozen(encoder, device, dtype)
            setattr(self, network, encoder)
            # with its layers under 'text_model.', as in files; newer transformers drop that level
            nested = hasattr(encoder, TEXT_LEVEL)
            self.networks[network] = encoder if nested else nn.ModuleDict({TEXT_LEVEL: encoder})
        self.scheduler_config = dict(scheduler_config)
        self.prediction = self.scheduler_config.get("prediction_type", "epsilon")
        self.latent_scale = 2 ** (len(vae.config["block_out_channels"]) - 1)  # pixels per latent, each way
        self.default_size = _square(unet.config["sample_size"], self.latent_scale)
        self.checkpointing = False
        self.decoder_checkpointing = DecoderCheckpointing(self.vae.decoder)

    # --- sampling ---

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """(4, height / 8, width / 8)."""
        if frames != 1:
            raise UserError(f"{self.name} makes pictures, not videos of {frames} frames: set frames to 1.")
        check_size(self.name, height, width, self.latent_scale)
        return (self.unet.config["in_channels"], height // self.latent_scale, width // self.latent_scale)

    def schedule(self, sampler: SamplerConfig) -> list[kernels.Step]:
        """The steps of diffusers' DDIMScheduler with this model's scheduler_config.json, never clipped."""
        return ddim_schedule.schedule(self.scheduler_config, sampler, self.name)

    def noise_level(self, share: float) -> NoiseLevel:
        return ddim_schedule.noise_level(self.scheduler_config, share)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, 8 h, 8 w] of latents [B, 4, h, w]."""
        scale, shift = latent_statistics(self.vae.config)
        latents = (latents * scale.to(latents) + shift.to(latents)).to(self.vae.dtype)
        pixels = self.vae.decode(latents, return_dict=False)[0]  # nominally in [-1, 1]
        return pixels.float() / 2 + 0.5

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the autoencoder's latents [B, 4, h, w] for pictures [B, 3, 8 h, 8 w]."""
        pixels = (pictures * 2 - 1).to(self.vae.device, self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist.mode().float()
        scale, shift = latent_statistics(self.vae.config)
        return (latents - shift.to(latents)) / scale.to(latents)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Of the UNet, of the text encoders, and of the autoencoder, whose decoder needs the most memory."""
        self.checkpointing = enabled  # a text encoder as one piece: its turn comes when the UNet's is over
        super().gradient_checkpointing(enabled)
        self.decoder_checkpointing.enable(enabled)

    # --- prompts ---

    def warn_of_long(self, prompts: Sequence[str], tokenizer: Any, length: int) -> None:
        """Warn of prompts with more tokens than are read."""
        lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False).input_ids]
        long = [prompt for prompt, n in zip(prompts, lengths, strict=True) if n > length]
        if long:
            warnings.warn(
                f"{len(long)} of {len(prompts)} prompts are longer than the {length} tokens that "
                f"{self.name} reads; the rest of them is ignored, first in {long[0][:60]!r}.",
                stacklevel=3,
            )

    # --- LoRA files ---

    def lora_key(self, layer: str, layout: str) -> str:
        """kohya: 'lora_unet_' or 'lora_te_' and the path with '_'; diffusers: the layer's own name."""
        network, _, path = layer.partition(".")
        if layout == "diffusers":
            return layer
        return self.kohya_prefixes[network][0] + path.replace(".", "_")

    def lora_key_aliases(self, layer: str, layout: str) -> list[str]:
        """Text encoders' layers: with another number, and without their outermost level."""
        network, _, path = layer.partition(".")
        if network in self.denoisers:
            return []
        paths = (path, path.removeprefix(f"{TEXT_LEVEL}."))
        if layout == "diffusers":
            return [f"{network}.{p}" for p in paths]
        return [f"{prefix}{p.replace('.', '_')}" for prefix in self.kohya_prefixes[network] for p in paths]


def refuse_editing_models(path: Path, unet: Any) -> None:
    """Raise UserError for a UNet that takes or gives more than the latents of a picture."""
    if unet.config.in_channels != 4 or unet.config.out_channels != 4:
        raise UserError(
            f"{path} takes {unet.config.in_channels} latent channels (an inpainting or editing model); "
            "use a plain text-to-image checkpoint."
        )


def check_size(name: str, height: int, width: int, multiple: int) -> None:
    """Raise UserError for a picture size that is no multiple of `multiple` pixels."""
    if height < multiple or width < multiple or height % multiple or width % multiple:
        nearest = [max(round(side / multiple), 1) * multiple for side in (height, width)]
        raise UserError(
            f"{height} x {width} pixels do not fit {name}: height and width must be multiples of "
            f"{multiple}, for example {nearest[0]} x {nearest[1]}."
        )


def latent_statistics(config: Any) -> tuple[Tensor, Tensor]:
    """(scale, shift): the autoencoder's own latents are latents * scale + shift; broadcast over [C, 1, 1]."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale, shift = 1 / torch.tensor(config["scaling_factor"]), torch.tensor(config.get("shift_factor") or 0.0)
    if mean is not None and std is not None:
        scale, shift = scale * torch.tensor(std)[:, None, None], torch.tensor(mean)[:, None, None]
    return scale, shift


def frozen(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The module on the device in this type, in eval mode, without gradients of its weights."""
    if module.dtype != dtype:  # diffusers warns about a cast even where there is nothing to cast
        module = module.to(dtype)
    return module.to(device).requires_grad_(False).eval()


def _square(latent_side: int | Sequence[int], scale: int) -> tuple[int, int]:
    height, width = (latent_side, latent_side) if isinstance(latent_side, int) else latent_side
    return height * scale, width * scale
