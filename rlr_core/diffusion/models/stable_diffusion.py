"""Stable Diffusion 1.x and 2.x, eps and v-prediction: a diffusers folder or a .safetensors checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlr_core.common import weights as weight_files
from rlr_core.diffusion import kernels
from rlr_core.diffusion.models import ldm_checkpoint
from rlr_core.diffusion.models.base import DiffusionModel, NoiseLevel, Rows
from rlr_core.diffusion.models.clip_text_encoder import clip_text_encoder
from rlr_core.diffusion.models.peft_layers import has_adapter
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from rlr_core.config import SamplerConfig

PIPELINE = "StableDiffusionPipeline"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out", "time_emb_proj")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_FEED_FORWARD = ("fc1", "fc2")
TEXT_LEVEL = "text_model"  # the outermost level of a CLIP text encoder
ENCODE_BATCH = 32  # prompts per pass of the text encoder


class StableDiffusion(DiffusionModel):
    """A UNet on the latents [B, 4, H/8, W/8] of a KL autoencoder, told the prompt by a CLIP text encoder."""

    family = "stable-diffusion"
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
        self.name, self.device, self.dtype = name, device, dtype
        vae_dtype = torch.float32 if device.type == "cpu" else dtype
        self.unet = _frozen(unet, device, dtype)
        self.vae = _frozen(vae, device, vae_dtype)
        self.text_encoder = _frozen(text_encoder, device, dtype)
        # with its layers under 'text_model.', as in files; newer transformers drop that level
        nested = hasattr(text_encoder, TEXT_LEVEL)
        wrapped = self.text_encoder if nested else nn.ModuleDict({TEXT_LEVEL: self.text_encoder})
        self.networks = {"unet": self.unet, "text_encoder": wrapped}
        self.tokenizer = tokenizer
        self.prompt_length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self.scheduler_config = dict(scheduler_config)
        self.prediction = self.scheduler_config.get("prediction_type", "epsilon")
        self.latent_scale = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels per latent, each way
        self.default_size = _square(unet.config.sample_size, self.latent_scale)
        self.checkpointing = False

    @property
    def architecture(self) -> str:
        v_prediction = self.prediction == "v_prediction"
        version_2 = "stable-diffusion-v2-768-v" if v_prediction else "stable-diffusion-v2-512"
        by_width = {768: "stable-diffusion-v1", 1024: version_2}  # of the text encoder
        return by_width.get(self.unet.config.cross_attention_dim, self.family)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if path.is_dir():
            return _pipeline_class(path) == PIPELINE
        return weight_files.kind(path) in ldm_checkpoint.KINDS

    @classmethod
    def load(cls, path: Path, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
        parts = _load_folder(path, dtype) if path.is_dir() else ldm_checkpoint.load_parts(path, dtype)
        unet = parts["unet"]
        if unet.config.in_channels != 4 or unet.config.out_channels != 4:
            raise UserError(
                f"{path} takes {unet.config.in_channels} latent channels (an inpainting or editing model); "
                "use a plain text-to-image checkpoint."
            )
        return cls(name=path.name, **parts, device=device, dtype=dtype)

    # --- prompts ---

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """{'prompt': [N, L, D]}: the text encoder's last hidden states, as diffusers' pipeline feeds them.

        {'tokens': [N, L]}, integers, while an adapter is in the text encoder. Prompts longer than its L
        tokens are cut, with a warning.
        """
        self._warn_of_long(prompts)
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

    def release_text_encoders(self) -> None:
        if not has_adapter(self.text_encoder):
            self.text_encoder.to("cpu")

    def _warn_of_long(self, prompts: Sequence[str]) -> None:
        lengths = [len(ids) for ids in self.tokenizer(list(prompts), verbose=False).input_ids]
        long = [prompt for prompt, n in zip(prompts, lengths, strict=True) if n > self.prompt_length]
        if long:
            warnings.warn(
                f"{len(long)} of {len(prompts)} prompts are longer than the {self.prompt_length} tokens that "
                f"{self.name} reads; the rest of them is ignored, first in {long[0][:60]!r}.",
                stacklevel=3,
            )

    # --- sampling ---

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """(4, height / 8, width / 8)."""
        if frames != 1:
            raise UserError(f"{self.name} makes pictures, not videos of {frames} frames: set frames to 1.")
        scale = self.latent_scale
        if height < scale or width < scale or height % scale or width % scale:
            nearest = [max(round(side / scale), 1) * scale for side in (height, width)]
            raise UserError(
                f"{height} x {width} pixels do not fit {self.name}: height and width must be multiples of "
                f"{scale}, for example {nearest[0]} x {nearest[1]}."
            )
        return (self.unet.config.in_channels, height // scale, width // scale)

    def schedule(self, sampler: SamplerConfig) -> list[kernels.Step]:
        """The steps of diffusers' DDIMScheduler with this model's scheduler_config.json, never clipped."""
        if sampler.kernel not in ("auto", *kernels.DIFFUSION_KERNELS):
            raise UserError(
                f"Sampler {sampler.kernel!r} is for flow models; {self.name} runs "
                f"{' or '.join(('auto', *kernels.DIFFUSION_KERNELS))}."
            )
        scheduler = _ddim(self.scheduler_config)
        steps = []
        try:
            for timestep, alpha, alpha_next in _ddim_levels(scheduler, sampler.steps):
                gaussian = kernels.ddim(alpha, alpha_next, sampler.eta, scheduler.config.prediction_type)
                steps.append(kernels.Step(float(timestep), *gaussian))
        except ValueError as error:
            raise UserError(f"{self.name} cannot run its schedule: {error}") from error
        return kernels.with_last_step_noise(steps, sampler.last_step_noise)

    def noise_level(self, share: float) -> NoiseLevel:
        """One of the training timesteps of the scheduler's table."""
        alphas = _ddim(self.scheduler_config).alphas_cumprod
        timestep = round(share * (len(alphas) - 1))
        alpha = float(alphas[timestep])
        return NoiseLevel(float(timestep), alpha**0.5, (1 - alpha) ** 0.5)

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

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, 8 h, 8 w] of latents [B, 4, h, w]."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pixels = self.vae.decode(latents, return_dict=False)[0]  # nominally in [-1, 1]
        return pixels.float() / 2 + 0.5

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the autoencoder's latents [B, 4, h, w] for pictures [B, 3, 8 h, 8 w]."""
        pixels = (pictures * 2 - 1).to(self.vae.device, self.vae.dtype)
        return self.vae.encode(pixels).latent_dist.mode().float() * self.vae.config.scaling_factor

    # --- LoRA files ---

    def lora_key(self, layer: str, layout: str) -> str:
        """kohya: 'lora_unet_' or 'lora_te_' and the path with '_'; diffusers: the layer's own name."""
        network, _, path = layer.partition(".")
        if layout == "diffusers":
            return layer
        return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[network] + path.replace(".", "_")

    def lora_key_aliases(self, layer: str, layout: str) -> list[str]:
        """Text encoders' layers: with SDXL's number, and without their outermost level."""
        network, _, path = layer.partition(".")
        if network != "text_encoder":
            return []
        paths = (path, path.removeprefix(f"{TEXT_LEVEL}."))
        if layout == "diffusers":
            return [f"text_encoder.{p}" for p in paths]
        return [f"{beginning}{p.replace('.', '_')}" for beginning in ("lora_te_", "lora_te1_") for p in paths]

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Of the UNet, of the text encoder, and of the autoencoder, whose decoder needs the most memory."""
        self.checkpointing = enabled  # the text encoder as one piece: its turn comes when the UNet's is over
        for network in (self.unet, self.vae):
            if enabled:
                network.enable_gradient_checkpointing()
            else:
                network.disable_gradient_checkpointing()


# --- the schedule of diffusers ---


def _ddim(config: dict[str, Any]) -> DDIMScheduler:
    """diffusers' own DDIM scheduler for any scheduler's config: it knows every default and every table."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)


def _ddim_levels(scheduler: DDIMScheduler, steps: int) -> list[tuple[int, float, float]]:
    """(timestep, alpha, next alpha) of each step, noisiest first, as DDIMScheduler.step looks them up."""
    alphas = scheduler.alphas_cumprod.tolist()
    scheduler.set_timesteps(steps)
    stride = len(alphas) // steps
    levels = []
    for timestep in scheduler.timesteps.tolist()[:steps]:  # trailing spacing yields one too many for some T
        if timestep >= len(alphas):
            raise ValueError(f"{steps} steps do not fit its {len(alphas)} training steps; use fewer.")
        following = timestep - stride
        alpha_next = alphas[following] if following >= 0 else float(scheduler.final_alpha_cumprod)
        levels.append((timestep, alphas[timestep], alpha_next))
    return levels


# --- a folder as diffusers writes it ---


def _pipeline_class(folder: Path) -> str | None:
    """The pipeline class that model_index.json names; None where there is none."""
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None


def _load_folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a StableDiffusionPipeline folder, as keywords of `StableDiffusion`. No network."""
    needed = {"unet": "config.json", "vae": "config.json", "text_encoder": "config.json",
              "tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}  # fmt: skip
    missing = [f"{part}/{file}" for part, file in needed.items() if not (folder / part / file).is_file()]
    if missing:
        raise UserError(f"{folder} is incomplete: no {', '.join(missing)}; copy the whole folder again.")

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTokenizer

    try:
        scheduler_config = json.loads((folder / "scheduler/scheduler_config.json").read_text("utf-8"))
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer or scheduler in {folder} cannot be read: {error}") from error
    return {
        "unet": _load_part(UNet2DConditionModel, folder / "unet", dtype),
        "vae": _load_part(AutoencoderKL, folder / "vae", dtype),
        "text_encoder": _load_text_encoder(folder / "text_encoder", dtype),
        "tokenizer": tokenizer,
        "scheduler_config": scheduler_config,
    }


def _load_part(network: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One network from its folder, whole or not at all: from_pretrained itself fills gaps with noise."""
    _, variant = _weights_of(folder)
    try:
        module, info = network.from_pretrained(
            folder,
            torch_dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    _refuse_gaps(folder, [*info["missing_keys"], *info["mismatched_keys"]])
    return module


def _load_text_encoder(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The CLIP text encoder from its folder, whichever transformers wrote it and whichever is here."""
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig

    files, _ = _weights_of(folder)
    try:
        config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        module, missing, _ = clip_text_encoder(tensors, config, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    _refuse_gaps(folder, missing)
    return module


def _weights_of(folder: Path) -> tuple[list[Path], str | None]:
    """A network's .safetensors files and their variant: 'fp16' where there are no others."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin"))
        raise UserError(
            f"{folder} holds pickled weights (.bin), which are never opened; convert them to .safetensors."
            if pickled
            else f"{folder} is incomplete: it holds no .safetensors file; copy the whole folder again."
        )
    for file in files:
        weight_files.read_header(file)  # says what is wrong with a truncated file
    full = [file for file in files if ".fp16." not in file.name]
    return (full, None) if full else (files, "fp16")


def _refuse_gaps(folder: Path, gaps: Sequence[str]) -> None:
    if gaps:
        raise UserError(
            f"{folder} does not fit its config.json: {len(gaps)} weights are missing, first {gaps[0]}."
        )


def _frozen(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    if module.dtype != dtype:  # diffusers warns about a cast even where there is nothing to cast
        module = module.to(dtype)
    return module.to(device).requires_grad_(False).eval()


def _square(latent_side: int | Sequence[int], scale: int) -> tuple[int, int]:
    height, width = (latent_side, latent_side) if isinstance(latent_side, int) else latent_side
    return height * scale, width * scale
