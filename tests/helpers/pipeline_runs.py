"""What the tests of families share: our chain on a family, and what diffusers' pipeline makes of the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlr_core.config import SamplerConfig
from rlr_core.config.prompts import Prompt
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import Conditioning, PromptBook
from rlr_core.diffusion.rollout import Noise, rollout

PROMPTS = ["a cat", "a red circle above"]
SIZE = {"height": 16, "width": 32}
PACKED = ("flux", "qwen-image")
"""Families whose pipeline wants initial noise as tokens."""


def diffusers_pipeline(family: str, folder: Any, **parts: Any) -> Any:
    import diffusers

    from rlr_core.diffusion.models.folders import pipeline_class

    kind = getattr(diffusers, pipeline_class(folder))
    pipeline = kind.from_pretrained(folder, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def frames_of(family: str) -> int:
    return {"wan": 5, "wan-2.2-a14b": 5, "animatediff": 3}.get(family, 1)


def sampler_of(family: str, guidance: float = 1.0, eta: float = 0.0, steps: int = 4) -> SamplerConfig:
    return SamplerConfig(steps=steps, eta=eta, guidance=guidance, frames=frames_of(family), **SIZE)


def chain_of(
    model: Any, guidance: float = 1.0, eta: float = 0.0, steps: int = 4
) -> tuple[Chain, Conditioning, Noise]:
    """A chain on PROMPTS, what its steps are told, and noise."""
    sampler = sampler_of(model.family, guidance, eta, steps)
    chain = Chain(model, model.schedule(sampler), guidance)
    book = PromptBook(model, [Prompt(text, (text,)) for text in PROMPTS])
    shape = model.latent_shape(sampler.height, sampler.width, sampler.frames)
    return chain, book.conditioning([0, 1]), Noise([1, 2], shape, model.device)


def our_pictures(model: Any, guidance: float = 1.0) -> Tensor:
    """Pictures of PROMPTS without noise on the way."""
    chain, conditioning, noise = chain_of(model, guidance)
    with torch.no_grad():
        return model.decode(rollout(chain, noise, conditioning).final).clamp(0, 1)


def pipeline_pictures(family: str, pipeline: Any, model: Any, guidance: float = 1.0) -> Tensor:
    """The pipeline's own, from the same noise."""
    start = chain_of(model)[2].initial()
    options: dict[str, Any] = {"guidance_scale": guidance}
    if family == "qwen-image":
        options = {"true_cfg_scale": guidance, "negative_prompt": ["", ""] if guidance > 1 else None}
    if family == "z-image":
        options = {"guidance_scale": guidance - 1}
    if frames_of(family) > 1:
        options["num_frames"] = frames_of(family)
    if family in PACKED:
        start = pipeline._pack_latents(start, *start.shape)
    result = pipeline(
        prompt=list(PROMPTS), latents=start, num_inference_steps=4, output_type="pt", **SIZE, **options
    )
    return result.frames if frames_of(family) > 1 else result.images


def score(model: Any, latents: Tensor) -> Tensor:
    """A smooth function of the pictures [B]."""
    pictures = model.decode(latents)
    red, others = pictures.select(-3, 0), pictures.narrow(-3, 1, 2)
    return (red.flatten(1).mean(1) - others.flatten(1).mean(1)) + 0.1 * pictures.square().flatten(1).mean(1)


def unrolled_gradient(chain: Chain, parameters: Any, conditioning: Conditioning, noise: Noise) -> Any:
    """d sum R / d theta by autograd through every step at once."""
    x = noise.initial()
    for t in range(chain.T, 0, -1):
        x = chain.mean(x, t, conditioning)
        if chain.sigma(t) > 0:
            x = x + chain.sigma(t) * noise.at(t)
    total = score(chain.model, x).sum()  # the last block's text goes nowhere in some transformers
    return torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
