"""Whatever MODEL, CLIP and VAE ComfyUI has loaded, as a family of the engine."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import torch
from torch import Tensor, nn

from rlr_core.diffusion.kernels import Step
from rlr_core.diffusion.models.base import DiffusionModel, NoiseLevel, Rows
from rlr_core.errors import UserError

from . import decode, guidance, kernels, lora_names, refusals, sampling
from .adapter import NativeLora
from .checkpointing import Checkpointing, keeps_state
from .chunks import Chunks
from .ops import FrozenOps
from .prompts import Book
from .signature import signature
from .tensors import make_ordinary

if TYPE_CHECKING:
    from rlr_core.config import SamplerConfig

NETWORK = lora_names.NETWORK
WITH_GRAPH = 2.0
"""A first guess of what a way back needs, in units of what ComfyUI says an evaluation or a decoding needs.
The preflight measures it."""


class NativeModel(DiffusionModel):
    """ComfyUI's own model: its weights as they are, its offloading, its patches; the network's output is x_0.

    Made by `running`, which loads it and gives everything back.
    """

    family = "comfy"
    prediction = "sample"
    denoisers = (NETWORK,)

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        latent: Mapping[str, Any],
        *,
        scheduler: str = sampling.DEFAULT_SCHEDULER,
        guidance_kind: str | None = None,
        name: str | None = None,
    ):
        """model, clip, vae, latent: as they come out of ComfyUI's sockets; the latent says size and frames.

        guidance_kind: 'cfg' or 'none' where the network alone does not tell (distilled models); None asks it.
        Raises UserError for what cannot be trained.
        """
        refusals.check_model(model)
        refusals.check_attention()
        refusals.check_vae(vae)
        refusals.check_latent(latent["samples"])
        self.patcher = model.clone()
        self.base = self.patcher.model
        self.vae = vae
        self.name = name or type(self.base).__name__
        if refusals.latent_streams(self.base):
            raise UserError(f"{self.name} packs video and audio into one latent, which cannot be trained.")
        self.scheduler = scheduler
        self.device = torch.device(self.patcher.load_device)
        self.dtype = self.base.manual_cast_dtype or self.base.get_dtype()
        self.networks = {NETWORK: self.base.diffusion_model}
        self.guidance_kind = guidance_kind or guidance.kind_of(self.base)
        self.guidance: float | None = None
        self._latent = _empty_latent(self.patcher, latent)
        self.scale = decode.pixels_of(vae)
        self.default_size = (self._latent[-2] * self.scale, self._latent[-1] * self.scale)
        self.frames = decode.frames_of(vae, self._latent[1]) if len(self._latent) == 4 else 1
        self.book = Book(clip)
        self.ops = [FrozenOps(self.networks[NETWORK]), FrozenOps(vae.first_stage_model)]
        self.checkpointing: list[Checkpointing | Chunks] = [Checkpointing(self.networks[NETWORK])]
        if not keeps_state(vae.first_stage_model):
            self.checkpointing += [Checkpointing(vae.first_stage_model), Chunks(vae.first_stage_model)]
        self._checkpoint = False
        self._file_names = lora_names.FileNames(self.base)
        self.lora_layouts = (self._file_names.layout,)
        self.lora_targets = dict.fromkeys(lora_names.TARGETS, ())
        self._loaded = False
        self._reserved = 0.0
        """Bytes that ComfyUI leaves free when it loads the weights."""

    @property
    def architecture(self) -> str:
        return type(self.base).__name__.lower()

    def signature(self) -> str:
        return signature(self.patcher, self.book.clip, self.vae)

    # --- what is on the device ---

    def load_weights(self) -> None:
        """Have ComfyUI load model and VAE; cheap where they are there already."""
        shape = (1, *self._latent)
        step = WITH_GRAPH * self.patcher.memory_required(list(shape))
        picture = WITH_GRAPH * self.vae.memory_used_decode(shape, self.vae.vae_dtype)
        needed = max(self._reserved, step, picture)
        comfy.model_management.load_models_gpu([self.patcher, self.vae.patcher], memory_required=needed)
        self._prepare()
        self._loaded = True

    def _prepare(self) -> None:
        """Frozen ops on everything, wherever it lies now; nothing is of inference mode any more."""
        self.patcher.pre_run()
        if getattr(self.patcher, "is_dynamic", bool)():
            self.base.current_patcher = None  # weights come layer by layer then, on the way back too
        for part in (self.base, self.base.latent_format, self.vae.first_stage_model):
            make_ordinary(part)
        for ops in self.ops:
            ops.install()
        self.gradient_checkpointing(self._checkpoint)

    def make_room(self, missing: int) -> int:
        """Have ComfyUI take `missing` bytes of this model's weights off the device; returns how many."""
        if self.device.type == "cpu":
            return 0
        before = comfy.model_management.get_free_memory(self.device)
        self._reserved = before + missing
        self.patcher.partially_unload(self.patcher.offload_device, missing)
        comfy.model_management.soft_empty_cache()
        self._prepare()
        return max(0, int(comfy.model_management.get_free_memory(self.device) - before))

    def _need_weights(self) -> None:
        if not self._loaded:
            self.load_weights()

    def close(self) -> None:
        """Give everything back: the layers, the kernels and the memory are ComfyUI's own again."""
        self.eject()
        for part in [*self.checkpointing, *self.ops]:
            part.remove()
        self.book.forget()
        self.patcher.cleanup()
        self._loaded = False

    # --- prompts ---

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """{'row': [N, 1]}: places in the book of what ComfyUI's CLIP makes of them."""
        self._loaded = False  # the CLIP may push the weights off the device
        return {"row": self.book.places(prompts).to(self.device)}

    def release_text_encoders(self) -> None:
        """Off the device: ComfyUI needs its room for the model."""
        patcher = self.book.clip.patcher
        loaded = comfy.model_management.current_loaded_models
        for entry in [entry for entry in loaded if entry.model is not None and entry.model.is_clone(patcher)]:
            if entry.device.type != "cpu":
                entry.model_unload()
                loaded.remove(entry)
        self._need_weights()  # what is free from now on is what a run has

    # --- sampling ---

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """As the LATENT socket has it, in another size or with another number of frames."""
        if (height, width) == self.default_size and frames in (1, self.frames):
            return self._latent
        if height < self.scale or width < self.scale or height % self.scale or width % self.scale:
            nearest = [max(round(side / self.scale), 1) * self.scale for side in (height, width)]
            raise UserError(
                f"{height} x {width} pixels do not fit {self.name}: height and width must be multiples of "
                f"{self.scale}, for example {nearest[0]} x {nearest[1]}."
            )
        if frames not in (1, self.frames):
            raise UserError(
                f"{frames} frames were asked for, and the latent has {self.frames}: set the empty latent's."
            )
        return (*self._latent[:-2], height // self.scale, width // self.scale)

    def schedule(self, sampler: SamplerConfig) -> list[Step]:
        """The sigmas of a scheduler of ComfyUI, the one of the socket where the settings name none."""
        wanted = sampler.scheduler
        self.guidance = sampler.guidance if self.guidance_kind == "embedded" else None
        options = {} if self.guidance is None else {"guidance": self.guidance}
        if options != self.book.options:
            self.book.options = options
            self.book.forget()
        return sampling.schedule(
            self.model_sampling, self.scheduler if wanted == "auto" else wanted, sampler, self.name
        )

    @property
    def model_sampling(self) -> Any:
        """ComfyUI's, with what nodes have put in its place."""
        return self.patcher.get_model_object("model_sampling")

    def noise_level(self, share: float) -> NoiseLevel:
        return sampling.noise_level(self.model_sampling, share)

    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """The prediction of x_0 [B, ...], in ComfyUI's scale of latents; timestep is a sigma."""
        self._need_weights()
        if isinstance(timestep, sampling.Level):
            scale = timestep.scale
        else:
            scale = sampling.scale_at(self.model_sampling, timestep)
        x = latents * scale
        places = conditioning["row"].flatten().tolist()
        groups = self.book.groups(self.base, places, latents.shape[1:], latents.device)
        if len(groups) == 1:
            return self._apply(x, timestep, groups[0].keywords())
        output: list[Tensor | None] = [None] * len(places)
        for group in groups:
            index = torch.tensor(group.samples, device=x.device)
            parts = self._apply(x[index], timestep, group.keywords())
            for sample, part in zip(group.samples, parts.unbind(), strict=True):
                output[sample] = part
        return torch.stack([part for part in output if part is not None])

    def _apply(self, x: Tensor, sigma: float, keywords: dict[str, Any]) -> Tensor:
        sigmas = x.new_full((x.shape[0],), float(sigma))
        output = self.base.apply_model(x, sigmas, **keywords, transformer_options=self._options(sigmas))
        return output.float()

    def _options(self, sigmas: Tensor) -> dict[str, Any]:
        """`transformer_options` of one pass: models write into it."""
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)[
            "transformer_options"
        ]
        for name in ("wrappers", "callbacks"):
            comfy.patcher_extension.merge_nested_dicts(
                options.setdefault(name, {}), getattr(self.patcher, name), copy_dict1=False
            )
        options["cond_or_uncond"] = [0] * len(sigmas)
        options["uuids"] = [None] * len(sigmas)
        options["sigmas"] = sigmas
        options["optimized_attention_override"] = kernels.attention
        return options

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] or [B, F, 3, H, W] by ComfyUI's VAE."""
        self._need_weights()
        return decode.decode(self.base, self.vae, latents)

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Of the network and of the VAE; one that decodes video in chunks is gone back through so, too."""
        self._checkpoint = enabled
        for part in self.checkpointing:
            if enabled:
                part.install()
            else:
                part.remove()

    # --- the adapter ---

    def adaptable(self, network: str) -> list[str]:
        return lora_names.linear_paths(self.networks[network])

    def lora_layers(self, targets: str | Sequence[str], text_encoder: bool = False) -> list[str]:
        """By patterns over whole paths: every network has names of its own."""
        refusals.check_text_encoder(text_encoder)
        if targets not in lora_names.TARGETS:
            return super().lora_layers(targets)
        paths = lora_names.chosen(self.adaptable(NETWORK), str(targets))
        if not paths:
            raise UserError(f"{self.name} has no layers that lora.targets {targets!r} means; use 'all'.")
        return [f"{NETWORK}.{path}" for path in paths]

    def lora_key(self, layer: str, layout: str) -> str:
        return self._file_names.written(layer, layout)

    def lora_key_aliases(self, layer: str, layout: str) -> Sequence[str]:
        return self._file_names.read(layer)

    def inject(self, layers: Mapping[str, tuple[int, float]]) -> dict[str, nn.Module]:
        injected: dict[str, nn.Module] = {}
        for layer in sorted(layers):
            module = self.networks[NETWORK].get_submodule(layer.removeprefix(f"{NETWORK}."))
            lora = NativeLora(module.in_features, module.out_features, *layers[layer], self.device)
            self.ops[0].adapters[module] = injected[layer] = lora
        return injected

    def eject(self) -> None:
        self.ops[0].adapters.clear()

    def has_adapter(self) -> bool:
        return bool(self.ops[0].adapters)


@contextmanager
def running(model: NativeModel) -> Iterator[NativeModel]:
    """The model, with kernels that have a gradient; everything is given back after the `with`."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(kernels.differentiable())
        stack.callback(gc.collect)
        stack.callback(model.close)
        yield model


def _empty_latent(patcher: Any, latent: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of one latent as the model wants it, for a LATENT of whatever empty-latent node."""
    samples = torch.zeros(latent["samples"].shape)
    ratios = {
        ours: latent[theirs]
        for ours, theirs in (
            ("downscale_ratio_spacial", "downscale_ratio_spacial"),
            ("downscale_ratio_temporal", "downscale_ratio_temporal"),
        )
        if latent.get(theirs) is not None
    }
    return tuple(comfy.sample.fix_empty_latent_channels(patcher, samples, **ratios).shape[1:])
