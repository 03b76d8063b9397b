"""What a diffusion model is to the engine: the protocol that every family implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rlr_core.diffusion.kernels import Step
from rlr_core.errors import UserError, nearest

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

Rows = dict[str, Tensor]
"""Prompts as `encode_prompts` gives them: named tensors whose first dimension is the prompt. They may be no
more than places in a table that the family keeps for itself: the engine only picks rows. Where prompts have
lengths of their own, a boolean 'mask' [N, L] says which places of the others [N, L, ...] are filled, from the
first on; the engine fills up and cuts off to the length that a batch needs."""


NOISES = ("high_noise", "low_noise")
"""What each of two denoisers is for."""


class NoiseLevel(NamedTuple):
    """A level of the forward process: x_t = alpha * x_0 + sigma * noise."""

    timestep: float  # what the denoiser is told
    alpha: float
    sigma: float


class DiffusionModel(ABC):
    """A frozen text-to-image (or video) model: prompts and noise in, pixels out.

    The engine adds guidance, the sampler, the adapter and the gradients; a family knows its networks only.
    A family is one file with a subclass and one line in `loading.FAMILIES`; one that is handed over as an
    object needs neither the line nor `recognizes` and `load`.
    """

    family: str
    """Name of the family, as in `loading.FAMILIES`."""
    name: str
    """What was loaded, for people and metadata: 'demo' or a file name."""
    source: str | None = None
    """What `load_model` was given, which a config can name; None for one handed over as an object."""
    networks: dict[str, nn.Module]
    """The networks that an adapter can go into, by name: {'unet': ..., 'text_encoder': ...}. Frozen. A layer
    is called '<network>.<module path>' everywhere in the engine."""
    denoisers: tuple[str, ...]
    """Which of `networks` denoise; the others are text encoders. Of two, the first is for much noise."""
    device: torch.device
    dtype: torch.dtype
    """The type of the frozen weights; latents are float32 everywhere."""
    default_size: tuple[int, int]
    """Height and width in pixels that the model was made for."""
    prediction: str
    """What the network's output means: 'epsilon', 'v_prediction', 'flow' (noise - x_0) or 'sample' (x_0)."""
    guidance_kind: str = "cfg"
    """'cfg': classifier-free, two evaluations a step; 'embedded': the scale is an input of the network;
    'none': distilled without."""
    lora_targets: Mapping[str, Sequence[str]]
    """Endings of the Linear or Conv modules that an adapter goes into, for each of 'attention',
    'attention+ff' and 'all'."""
    text_targets: Mapping[str, Sequence[str]] = {}
    """The same for text encoders; empty where they take no adapter."""
    lora_layouts: tuple[str, ...] = ("kohya", "diffusers")
    """Layouts of LoRA files that can be written; the first is the one that stock ComfyUI loads whole."""

    quantizable: bool = False
    """Whether `load` takes `bits`, 4 or 8, and holds the denoiser's weights so."""

    # --- loading ---

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether `path` (a file or folder) holds a model of this family. Reads headers only."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> DiffusionModel:
        """Load from `path`, frozen, in eval mode. Raises UserError with a sentence about what is wrong."""
        raise NotImplementedError

    def signature(self) -> str | None:
        """What a saved run compares to see that this is the model it began with; None if `name` must do."""
        return None

    @property
    def architecture(self) -> str:
        """Its name in the modelspec standard, for the metadata of LoRA files: 'stable-diffusion-v1'."""
        return self.family

    # --- prompts ---

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """Encode N prompts: named tensors [N, ...] on the device. '' is the unconditional prompt.

        While an adapter is in a text encoder, what comes out of it depends on the adapter: the rows are then
        token ids, which `denoise` encodes every time.
        """

    def blank_prompts(self, count: int) -> Rows:
        """Rows like those of `encode_prompts`, of the longest prompts, with nothing in them: for measuring.

        Raises UserError for a family that cannot.
        """
        raise UserError(f"What {self.name} needs cannot be told without running it.")

    def release_text_encoders(self) -> None:
        """Move text encoders off the accelerator once every prompt is encoded; not those with an adapter."""

    # --- sampling ---

    @abstractmethod
    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """Shape of one sample's latent, without the batch; sizes in pixels and frames of the result.

        Raises UserError for a size that does not fit.
        """

    @abstractmethod
    def schedule(self, sampler: SamplerConfig) -> list[Step]:
        """The T = sampler.steps steps from noise to picture, as `kernels` defines them.

        Initial noise is standard normal. Raises UserError for a kernel the family cannot run.
        """

    @abstractmethod
    def noise_level(self, share: float) -> NoiseLevel:
        """The forward process of training at a share of its range, from 0 (picture) to 1 (noise)."""

    @abstractmethod
    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """The network's output, float32, same shape as latents [B, ...].

        Differentiable in the latents and in the adapter. `conditioning` holds B rows. No guidance here, but
        for a family with embedded guidance, whose scale it was told by `schedule`.
        """

    def guide(self, without: Tensor, with_prompt: Tensor, scale: float) -> Tensor:
        """The network's guided output, from those without and with the prompt, [B, ...] each."""
        return without + scale * (with_prompt - without)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] (or [B, F, 3, H, W]), float32, nominally in [0, 1] and not clamped.

        Differentiable in the latents.
        """

    def make_room(self, missing: int) -> int:
        """Take `missing` bytes of weights off the device, where a family can work so; how many it took."""
        return 0

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents [B, ...] of pictures [B, 3, H, W] in [0, 1], without a graph: what `decode` turns back.

        Raises UserError for a family that cannot, which is one that never learns from given pictures.
        """
        raise UserError(f"{self.name} cannot learn from given pictures: its family has no encoder here.")

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations inside a step instead of keeping them."""
        verb = "enable" if enabled else "disable"
        for name in self.denoisers:
            toggle = getattr(self.networks[name], f"{verb}_gradient_checkpointing", None)
            if toggle is not None:
                toggle()

    # --- the adapter: where it goes, how it gets there, what its layers are called in files ---

    def adaptable(self, network: str) -> list[str]:
        """Paths in a network of the modules that can take an adapter: linear layers and convolutions."""
        kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
        return [path for path, module in self.networks[network].named_modules() if isinstance(module, kinds)]

    def lora_layers(self, targets: str | Sequence[str], text_encoder: bool = False) -> list[str]:
        """Names of the layers that `targets` means: the denoisers', sorted, then the text encoders'.

        targets: 'attention', 'attention+ff', 'all', or endings of module names, which may leave the denoisers
        out if text encoders are asked for and have them. Raises UserError where nothing matches.
        """
        if isinstance(targets, str) and targets not in self.lora_targets:
            known = list(self.lora_targets)
            raise UserError(
                f"Unknown LoRA targets {targets!r}; use {', '.join(map(repr, known))} or a list of module "
                f"names.{nearest(targets, known)}"
            )
        text_encoders = [name for name in self.networks if name not in self.denoisers]
        if text_encoder and not (text_encoders and self.text_targets):
            raise UserError(f"{self.name} has no text encoder that can be trained; leave out text_encoder.")
        layers: list[str] = []
        for network in [*self.denoisers, *(text_encoders if text_encoder else [])]:
            of_denoiser = network in self.denoisers
            endings = targets
            if isinstance(targets, str):
                endings = (self.lora_targets if of_denoiser else self.text_targets)[targets]
            suffixes = tuple(f".{ending}" for ending in endings)
            paths = sorted(p for p in self.adaptable(network) if f".{p}".endswith(suffixes))
            if not paths and (not of_denoiser or not text_encoder):
                raise UserError(
                    f"No layer of {self.name} ({network}) is called {' or '.join(endings)}; its layers are "
                    f"called, for example, {', '.join(self._frequent_names(network))}."
                )
            layers += [f"{network}.{path}" for path in paths]
        return layers

    def denoisers_for(self, noise: str) -> tuple[str, ...]:
        """Which denoisers 'all', 'high_noise' or 'low_noise' means. Raises UserError if there is only one."""
        if noise == "all":
            return self.denoisers
        if len(self.denoisers) < len(NOISES):
            raise UserError(f"{self.name} has one denoiser for all noise; set lora.denoisers to all.")
        return (self.denoisers[NOISES.index(noise)],)

    def _frequent_names(self, network: str, count: int = 6) -> list[str]:
        """The most frequent last names of adaptable layers ('to_out.0' counts as one)."""
        import re
        from collections import Counter

        names = Counter(re.sub(r"^.*\.(?=\D)", "", path) for path in self.adaptable(network))
        return [name for name, _ in names.most_common(count)]

    @abstractmethod
    def lora_key(self, layer: str, layout: str) -> str:
        """What a layer is called in a LoRA file of this layout, without the ending of its two matrices."""

    def lora_key_aliases(self, layer: str, layout: str) -> Sequence[str]:
        """Other names that a layer may have in files of this layout, for reading."""
        return ()

    def inject(self, layers: Mapping[str, tuple[int, float]]) -> dict[str, nn.Module]:
        """Put a LoRA of given rank and alpha into each named layer; returns the adapter's layers by name.

        Each has `lora_A[ADAPTER].weight` and `lora_B[ADAPTER].weight` in float32, `lora_alpha[ADAPTER]`,
        `_disable_adapters` and `set_scale(ADAPTER, strength)`; peft's own unless a family brings others.
        """
        from rlr_core.diffusion.models import peft_layers

        return peft_layers.inject(self.networks, layers, self.device)

    def eject(self) -> None:
        """Take the adapter out: the model has its own layers again, in the same places."""
        from rlr_core.diffusion.models import peft_layers

        peft_layers.eject(self.networks)

    def has_adapter(self) -> bool:
        """Whether there is an adapter in any of the networks."""
        from rlr_core.diffusion.models import peft_layers

        return any(map(peft_layers.has_adapter, self.networks.values()))
