"""What the flow transformers have in common: a diffusers folder, prompts, schedule, decoder, LoRA names.

A family says which classes its parts are of, what its pipeline makes of prompts, and how its transformer is
called. Text encoders are loaded when prompts are to be encoded and dropped before anything else is done: they
can be larger than the transformer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlr_core.diffusion import kernels
from rlr_core.diffusion.models import descriptions, folders, text_parts
from rlr_core.diffusion.models.base import DiffusionModel, NoiseLevel, Rows
from rlr_core.diffusion.models.decoder_checkpointing import DecoderCheckpointing
from rlr_core.diffusion.models.quiet import quiet_libraries
from rlr_core.diffusion.models.unet import check_size, latent_statistics
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

OLDEST_TORCH = (2, 5)
"""Whose attention does what diffusers' transformers ask of it."""
ROOM = 1.2
"""What text encoders take on a device, in units of their weights."""


class FlowTransformer(DiffusionModel):
    """A transformer that says noise - picture, on the latents of an autoencoder, from a diffusers folder."""

    denoisers: tuple[str, ...] = ("transformer",)
    prediction = "flow"
    quantizable = True
    lora_layouts = ("comfy",)

    pipeline: str
    """The class of diffusers' pipeline, as model_index.json names it."""
    transformer_class: str
    vae_class: str = "AutoencoderKL"
    text_encoders: Mapping[str, tuple[str, ...]]
    """Which classes of transformers each text encoder may be of."""
    tokenizers: tuple[str, ...] = ("tokenizer",)
    optional: tuple[str, ...] = ()
    """Text encoders and tokenizers that a folder may lack."""
    patch = 2
    """Side of the transformer's patches in latents."""
    float32_vae = False
    """Whether the autoencoder is too coarse in half precision."""

    def __init__(
        self,
        *,
        folder: Path,
        transformer: Any,
        vae: Any,
        scheduler_config: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
    ):
        """folder: where text encoders are loaded from when they are needed; the rest is frozen and moved to
        the device. scheduler_config: a scheduler_config.json."""
        self.name, self.folder, self.device, self.dtype = folder.name, folder, device, dtype
        self.index = folders.index(folder)
        self.transformer = transformer.to(device).requires_grad_(False).eval()
        self.vae = vae.to(device).requires_grad_(False).eval()
        self.networks = {"transformer": self.transformer}
        self.scheduler_config = dict(scheduler_config)
        self.latent_scale = self._latent_scale()
        self.default_size = self._default_size()
        self.decoder_checkpointing = DecoderCheckpointing(self.vae.decoder)
        self.guidance = 1.0
        self._text: Any = None
        self._away = False

    # --- loading ---

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_dir() and folders.pipeline_class(path) == cls.pipeline

    @classmethod
    def load(
        cls, path: Path, device: torch.device, dtype: torch.dtype, bits: int | None = None
    ) -> FlowTransformer:
        """bits: 4 or 8 hold the transformer's weights so, by bitsandbytes, on the current GPU."""
        if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
            raise UserError(f"{path} needs PyTorch 2.5 or newer; this is {torch.__version__}.")
        text_parts.check(cls, path)
        folders.check_main_memory([path / name for name in cls.denoisers], dtype)
        float32 = cls.float32_vae or device.type == "cpu"
        return cls(
            folder=path,
            **{name: cls._load_denoiser(path / name, dtype, bits) for name in cls.denoisers},
            vae=folders.load_network(
                folders.diffusers_class(cls.vae_class), path / "vae", torch.float32 if float32 else dtype
            ),
            scheduler_config=folders.scheduler_config(path, "FlowMatchEulerDiscreteScheduler"),
            device=device,
            dtype=dtype,
        )

    @classmethod
    def _load_denoiser(cls, path: Path, dtype: torch.dtype, bits: int | None) -> Any:
        network = folders.diffusers_class(cls.transformer_class)
        options = {} if bits is None else {"quantization_config": _quantization(bits, dtype)}
        return folders.load_network(network, path, dtype, **options)

    def _latent_scale(self) -> int:
        """Pixels per latent, each way."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def _default_size(self) -> tuple[int, int]:
        return 128 * self.latent_scale, 128 * self.latent_scale

    # --- prompts ---

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """What diffusers' pipeline feeds its transformer, by the family's own names."""
        if self._text is None:
            self._text = self._load_text()
        with torch.no_grad(), descriptions.reading(f"The text encoders in {self.folder} cannot encode"):
            return self._encode(self._text, list(prompts))

    @abstractmethod
    def _encode(self, pipeline: Any, prompts: list[str]) -> Rows:
        """Rows of N prompts; pipeline: diffusers' own, which holds text encoders and tokenizers alone."""

    def blank_prompts(self, count: int) -> Rows:
        rows = {
            name: torch.zeros(count, *size, device=self.device, dtype=self.dtype)
            for name, size in self._prompt_sizes().items()
        }
        if "mask" in rows:
            rows["mask"] = torch.ones_like(rows["mask"], dtype=torch.bool, device="cpu")
        return rows

    @abstractmethod
    def _prompt_sizes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a long prompt's rows, without the prompts' dimension."""

    def _load_text(self) -> Any:
        """diffusers' pipeline without transformer and autoencoder, on the device."""
        with quiet_libraries():
            parts = text_parts.load(self, self.folder, self.dtype)
        encoders = [part for name, part in parts.items() if name in self.text_encoders and part is not None]
        self._make_room_for(encoders)
        for encoder in encoders:
            encoder.to(self.device).requires_grad_(False).eval()
        pipeline = folders.diffusers_class(self.pipeline)
        return pipeline(transformer=None, vae=None, scheduler=self._scheduler(), **parts)

    def _make_room_for(self, encoders: Sequence[Any]) -> None:
        """Take transformer and autoencoder off a device without room for text encoders beside them."""
        size = sum(p.nbytes for encoder in encoders for p in encoder.parameters())
        if self.device.type == "cuda" and torch.cuda.mem_get_info(self.device)[0] < ROOM * size:
            self._move(torch.device("cpu"))
            self._away = True

    def _move(self, device: torch.device) -> None:
        for network in (*self.networks.values(), self.vae):
            network.to(device)

    def release_text_encoders(self) -> None:
        """Drop them; they are loaded again where further prompts come."""
        self._text = None
        if self._away:
            self._move(self.device)
            self._away = False

    # --- sampling ---

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """(C, height / 8, width / 8)."""
        if frames != 1:
            raise UserError(f"{self.name} makes pictures, not videos of {frames} frames: set frames to 1.")
        check_size(self.name, height, width, self.latent_scale * self.patch)
        return (self._channels(), height // self.latent_scale, width // self.latent_scale)

    def _channels(self) -> int:
        """Of the latents."""
        return self.transformer.config["in_channels"]

    def schedule(self, sampler: SamplerConfig) -> list[kernels.Step]:
        """The noise levels of diffusers' pipeline, with this model's scheduler_config.json and the picture's
        size; told to the network as s * 1000."""
        kernel = kernels.FLOW_KERNELS[0] if sampler.kernel == "auto" else sampler.kernel
        if kernel not in kernels.FLOW_KERNELS:
            raise UserError(
                f"Sampler {sampler.kernel!r} is for models that predict noise; {self.name} runs "
                f"{' or '.join(('auto', *kernels.FLOW_KERNELS))}."
            )
        self.guidance = sampler.guidance
        scheduler = self._scheduler()
        try:
            self._set_levels(scheduler, sampler)
            levels = [float(level) for level in scheduler.sigmas]
            timesteps = [float(timestep) for timestep in scheduler.timesteps]
            steps = kernels.flow_steps(timesteps, levels, eta=sampler.eta, kernel=kernel)
        except ValueError as error:
            raise UserError(f"{self.name} cannot run its schedule: {error}") from error
        return kernels.with_last_step_noise(steps, sampler.last_step_noise)

    def _scheduler(self) -> Any:
        """diffusers' own scheduler: it knows every default and every way to shift noise levels."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config)

    def _set_levels(self, scheduler: Any, sampler: SamplerConfig) -> None:
        """As the pipeline does: evenly spaced levels, shifted by how many patches the picture has."""
        even = [1 - index / sampler.steps for index in range(sampler.steps)]
        scheduler.set_timesteps(sigmas=even, mu=self._shift(sampler))

    def _shift(self, sampler: SamplerConfig) -> float:
        """mu, which grows evenly with the number of patches."""
        config = self.scheduler_config
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return least + (most - least) * (self._patches(sampler) - low) / (high - low)

    def _patches(self, sampler: SamplerConfig) -> int:
        """How many patches the transformer sees."""
        height, width = sampler.height or self.default_size[0], sampler.width or self.default_size[1]
        side = self.latent_scale * self.patch
        return (height // side) * (width // side)

    def noise_level(self, share: float) -> NoiseLevel:
        return NoiseLevel(share * 1000, 1 - share, share)

    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """noise - picture, float32, shape of latents [B, ...]; timestep: noise level * 1000."""
        self.release_text_encoders()
        times = latents.new_full((latents.shape[0],), timestep)  # filled on the device: no wait for the GPU
        return self._velocity(latents.to(self.dtype), times, conditioning).float()

    @abstractmethod
    def _velocity(self, latents: Tensor, times: Tensor, conditioning: Rows) -> Tensor:
        """noise - picture for latents [B, ...] in the transformer's type and times [B] in 0..1000."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] of latents [B, C, h, w]."""
        self.release_text_encoders()
        pixels = self.vae.decode(self._to_vae(latents).to(self.vae.dtype), return_dict=False)[0]
        return self._picture(pixels).float() / 2 + 0.5

    def _picture(self, pixels: Tensor) -> Tensor:
        """Pixels as the protocol wants them, of what the autoencoder gives."""
        return pixels

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the autoencoder's latents [B, C, h, w] for pictures [B, 3, H, W]."""
        self.release_text_encoders()
        pixels = (pictures * 2 - 1).to(self.device, self.vae.dtype)
        return self._from_vae(self.vae.encode(self._pixels(pixels)).latent_dist.mode().float())

    def _pixels(self, pictures: Tensor) -> Tensor:
        """What the autoencoder wants of pictures [B, 3, H, W]."""
        return pictures

    def _to_vae(self, latents: Tensor) -> Tensor:
        """Latents as the autoencoder has them."""
        scale, shift = latent_statistics(self.vae.config)
        return latents * scale.to(latents) + shift.to(latents)

    def _from_vae(self, latents: Tensor) -> Tensor:
        """The way back."""
        scale, shift = latent_statistics(self.vae.config)
        return (latents - shift.to(latents)) / scale.to(latents)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Of the transformer and of the autoencoder's decoder."""
        super().gradient_checkpointing(enabled)
        self.decoder_checkpointing.enable(enabled)

    def lora_key(self, layer: str, layout: str) -> str:
        """diffusers' own name, 'transformer.<path>', which ComfyUI knows for these models too."""
        return layer

    def lora_key_aliases(self, layer: str, layout: str) -> Sequence[str]:
        """As other trainers write it: without the network's name, or with ComfyUI's."""
        path = layer.removeprefix("transformer.")
        return (path, f"diffusion_model.{path}")


def _quantization(bits: int, dtype: torch.dtype) -> Any:
    """How bitsandbytes is to hold weights that are computed with in `dtype`."""
    from diffusers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
