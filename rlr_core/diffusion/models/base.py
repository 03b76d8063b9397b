"""What a diffusion model is to the engine: the protocol that every family implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlr_core.diffusion.kernels import Step

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

Rows = dict[str, Tensor]
"""Prompts as `encode_prompts` gives them: named tensors whose first dimension is the prompt."""


class DiffusionModel(ABC):
    """A frozen text-to-image (or video) model: prompts and noise in, pixels out.

    The engine adds guidance, the sampler, the adapter and the gradients; a family knows its networks only.
    A family is one file with a subclass and one line in `loading.FAMILIES`.
    """

    family: str
    """Name of the family, as in `loading.FAMILIES`."""
    name: str
    """What was loaded, for people and metadata: 'demo' or a file name."""
    denoiser: nn.Module
    """The network that the adapter goes into. Its weights are frozen."""
    device: torch.device
    dtype: torch.dtype
    """The type of the frozen weights; latents are float32 everywhere."""
    default_size: tuple[int, int]
    """Height and width in pixels that the model was made for."""
    lora_targets: dict[str, Sequence[str]]
    """Names of the Linear (or Conv) modules to adapt, as peft's `target_modules` (suffixes), for each of
    'attention', 'attention+ff' and 'all'."""
    lora_prefixes: dict[str, str]
    """How this family's keys begin in files: {'kohya': 'lora_unet_', 'diffusers': 'unet.'}."""
    text_targets: dict[str, Sequence[str]] = {}
    """As `lora_targets`, for the text encoders; empty where they take no adapter."""
    text_prefixes: dict[str, dict[str, Sequence[str]]] = {}
    """As `lora_prefixes`, for each of `text_encoders`; several beginnings are read, the first is written:
    {'text_encoder': {'kohya': ['lora_te_'], 'diffusers': ['text_encoder.']}}."""

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders that an adapter can go into, by name; their module paths are those in files."""
        return {}

    @property
    def architecture(self) -> str:
        """Its name in the modelspec standard, for the metadata of LoRA files: 'stable-diffusion-v1'."""
        return self.family

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether `path` (a file or folder) holds a model of this family. Reads headers only."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
        """Load from `path`, frozen, in eval mode. Raises UserError with a sentence about what is wrong."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """Encode N prompts: named tensors [N, ...] on the device. '' is the unconditional prompt.

        While an adapter is in a text encoder, what comes out of it depends on the adapter: the rows are then
        token ids, which `denoise` encodes every time.
        """

    def release_text_encoders(self) -> None:  # noqa: B027 - a family without text encoders has nothing to do
        """Move text encoders off the accelerator once every prompt is encoded; not those with an adapter."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one sample's latent, without the batch. Raises UserError for a size that does not fit."""

    @abstractmethod
    def schedule(self, sampler: SamplerConfig) -> list[Step]:
        """The T = sampler.steps steps from noise to picture, as `kernels` defines them.

        Initial noise is standard normal. Raises UserError for a kernel the family cannot run.
        """

    @abstractmethod
    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """The network's output, float32, same shape as latents [B, ...].

        Differentiable in the latents and in the adapter. `conditioning` holds B rows. No guidance here.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] (or [B, F, 3, H, W]), float32, nominally in [0, 1] and not clamped.

        Differentiable in the latents.
        """

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations inside a step instead of keeping them."""
        toggle = getattr(
            self.denoiser,
            "enable_gradient_checkpointing" if enabled else "disable_gradient_checkpointing",
            None,
        )
        if toggle is not None:
            toggle()


def has_adapter(network: nn.Module) -> bool:
    """Whether there is a LoRA in the network."""
    return any(hasattr(module, "lora_A") for module in network.modules())
