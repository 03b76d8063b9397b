"""A tiny flow-matching transformer, a second family for the tests: it shares nothing with Stable Diffusion.

Pictures are 16 x 16, latents [2, 4, 4], prompts are hashed letter by letter, every weight comes from a seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlr_core.config import SamplerConfig
from rlr_core.diffusion import kernels
from rlr_core.diffusion.models.base import DiffusionModel, NoiseLevel, Rows
from rlr_core.diffusion.models.loading import register_family
from rlr_core.errors import UserError

CHANNELS, SIDE, PATCH, PIXELS = 2, 4, 2, 4  # latent channels and side, patch side, pixels per latent
WIDTH, HEADS, BLOCKS, LETTERS = 48, 3, 2, 12
ATTENTION = ("qkv", "query", "key_value", "output")
SHIFT = 1.5  # of the noise levels, as in models for larger pictures


class TinyFlow(DiffusionModel):
    """Velocity v = noise - picture, at noise levels s from 1 to 0, told as s * 1000."""

    family = "tiny-flow"
    default_size = (SIDE * PIXELS, SIDE * PIXELS)
    lora_targets = {
        "attention": ATTENTION,
        "attention+ff": (*ATTENTION, "mlp.0", "mlp.2"),
        "all": (*ATTENTION, "mlp.0", "mlp.2", "modulation", "patch_in", "patch_out"),
    }
    denoisers = ("transformer",)
    prediction = "flow"

    def __init__(self, seed: int = 0, device: torch.device | None = None, dtype: torch.dtype = torch.float32):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            denoiser = Transformer()
            self.letters = torch.randn(64, WIDTH)
            self.to_pixels = torch.randn(3, CHANNELS)
        self.name = f"tiny-flow-{seed}"
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self.networks = {"transformer": denoiser.to(self.device, dtype).requires_grad_(False).eval()}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_file() and path.suffix == ".tinyflow"

    @classmethod
    def load(cls, path: Path, device: torch.device, dtype: torch.dtype) -> TinyFlow:
        return cls(json.loads(path.read_text())["seed"], device, dtype)

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """{'letters': [N, 12, 48], 'length': [N]}: two tensors, to see that families may name their own."""
        rows = torch.zeros(len(prompts), LETTERS, WIDTH)
        for row, prompt in zip(rows, prompts, strict=True):
            for place, letter in enumerate(prompt[:LETTERS]):
                row[place] = self.letters[ord(letter) * 31 % 64] + math.sin(place)
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return {"letters": rows.to(self.device, self.dtype), "length": lengths.to(self.device, self.dtype)}

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        if frames != 1:
            raise UserError(f"{self.name} makes pictures of one frame, not {frames}.")
        if (height, width) != self.default_size:
            raise UserError(f"{self.name} makes pictures of {self.default_size}, not {height} x {width}.")
        return (CHANNELS, SIDE, SIDE)

    def schedule(self, sampler: SamplerConfig) -> list[kernels.Step]:
        kernel = "flow_ddim" if sampler.kernel == "auto" else sampler.kernel
        if kernel not in kernels.FLOW_KERNELS:
            raise UserError(f"{self.name} is a flow model; it runs {', '.join(kernels.FLOW_KERNELS)}.")
        even = [1 - index / sampler.steps for index in range(sampler.steps)]
        levels = [SHIFT * s / (1 + (SHIFT - 1) * s) for s in even] + [0.0]
        timesteps = [s * 1000 for s in levels[:-1]]
        steps = kernels.flow_steps(timesteps, levels, eta=sampler.eta, kernel=kernel)
        return kernels.with_last_step_noise(steps, sampler.last_step_noise)

    def noise_level(self, share: float) -> NoiseLevel:
        return NoiseLevel(share * 1000, 1 - share, share)

    def lora_key(self, layer: str, layout: str) -> str:
        path = layer.partition(".")[2]
        return layer if layout == "diffusers" else f"lora_transformer_{path.replace('.', '_')}"

    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        letters, length = conditioning["letters"], conditioning["length"]
        network = self.networks["transformer"]
        return network(latents.to(self.dtype), timestep / 1000, letters, length).float()

    def decode(self, latents: Tensor) -> Tensor:
        pixels = torch.einsum("pc,bchw->bphw", self.to_pixels.to(latents.device), latents)
        return F.interpolate(pixels, scale_factor=PIXELS, mode="bilinear").sigmoid()


class Transformer(nn.Module):
    """Patches in, blocks of self-attention, cross-attention and an MLP modulated by the time, patches out."""

    def __init__(self):
        super().__init__()
        self.patch_in = nn.Linear(CHANNELS * PATCH**2, WIDTH)
        self.places = nn.Parameter(torch.randn((SIDE // PATCH) ** 2, WIDTH) / 2)
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.patch_out = nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def forward(self, latents: Tensor, s: float, letters: Tensor, length: Tensor) -> Tensor:
        patches = F.unfold(latents, PATCH, stride=PATCH).transpose(1, 2)  # [B, 4 patches, 8]
        tokens = self.patch_in(patches) + self.places
        frequencies = torch.arange(1, WIDTH // 2 + 1, device=latents.device) * (4 * s)
        waves = torch.cat([frequencies.sin(), frequencies.cos()]).to(latents.dtype)
        time = self.time(waves) + length[:, None] / LETTERS  # [B, WIDTH]
        for block in self.blocks:
            tokens = block(tokens, time, letters)
        patches = self.patch_out(tokens).transpose(1, 2)
        return F.fold(patches, (SIDE, SIDE), PATCH, stride=PATCH)


class Block(nn.Module):
    """x + self-attention, x + cross-attention to the letters, x + MLP."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.self_attention = _layers(qkv=3 * WIDTH, output=WIDTH)
        self.cross_attention = _layers(query=WIDTH, key_value=2 * WIDTH, output=WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor, time: Tensor, letters: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(time))[:, None].chunk(2, -1)
        normal = F.layer_norm(tokens, (WIDTH,)) * (1 + scale) + shift
        query, key, value = self.self_attention["qkv"](normal).chunk(3, -1)
        tokens = tokens + self.self_attention["output"](_attend(query, key, value))
        query = self.cross_attention["query"](F.layer_norm(tokens, (WIDTH,)))
        key, value = self.cross_attention["key_value"](letters).chunk(2, -1)
        tokens = tokens + self.cross_attention["output"](_attend(query, key, value))
        return tokens + self.mlp(F.layer_norm(tokens, (WIDTH,)))


def _layers(**widths: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(WIDTH, width) for name, width in widths.items()})


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value)]  # [B, heads, n, d]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def write_tiny_flow(path: Path, seed: int = 0) -> Path:
    """Write a '.tinyflow' file that `load_model` loads, once `register` was called."""
    path.write_text(json.dumps({"seed": seed}))
    return path


def register() -> None:
    """Make `load_model` know the family."""
    register_family(TinyFlow.family, TinyFlow)
