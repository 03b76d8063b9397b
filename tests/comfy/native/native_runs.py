"""What the tests do with a tiny native model: sample it as KSampler does, train it, measure it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from native_parts import Sockets
from torch import Tensor

TEXTS = ["a cat", "a (red:1.2) dog", "two cats on a mat"]


def family(native: Any, sockets: Sockets, **options: Any) -> Any:
    """The family over sockets, guided classifier-free unless said otherwise."""
    options.setdefault("guidance_kind", "cfg")
    return native.NativeModel(sockets.model, sockets.clip, sockets.vae, sockets.latent, **options)


def ksampler(
    sockets: Sockets, noise: Tensor, scheduler: str, steps: int, cfg: float, model: Any = None
) -> Tensor:
    """Latents [3, ...] of stock euler for TEXTS, one picture at a time."""
    import comfy.sample

    model = sockets.model if model is None else model
    latent = comfy.sample.fix_empty_latent_channels(model, sockets.latent["samples"])
    encode = sockets.clip.encode_from_tokens_scheduled
    with torch.inference_mode():
        pictures = [
            comfy.sample.sample(
                model,
                noise[[place]],
                steps,
                cfg,
                "euler",
                scheduler,
                encode(text),
                encode(""),
                latent,
                seed=0,
                disable_pbar=True,
            )
            for place, text in enumerate(TEXTS)
        ]
    return torch.cat([picture.clone() for picture in pictures])


def chain_of(model: Any, steps: int = 4, eta: float = 0.0, guidance: float = 2.0) -> tuple[Any, Any]:
    """A chain over the family, and the conditioning of TEXTS."""
    from rlr_core.config import SamplerConfig
    from rlr_core.config.prompts import read_prompts
    from rlr_core.diffusion.chain import Chain
    from rlr_core.diffusion.conditioning import PromptBook

    chain = Chain(model, model.schedule(SamplerConfig(steps=steps, eta=eta, guidance=guidance)), guidance)
    book = PromptBook(model, read_prompts(TEXTS))
    model.release_text_encoders()
    return chain, book.conditioning(range(len(TEXTS)))


def noise_of(model: Any) -> Any:
    from rlr_core.diffusion.rollout import Noise

    return Noise([1, 2, 3], model.latent_shape(*model.default_size))


def random_adapter(model: Any, rank: int = 2, targets: str = "attention", size: float = 0.3) -> Any:
    """A LoRA whose two matrices are random; its changes are about size times as large as the weights."""
    from rlr_core.lora.attach import attach

    adapter = attach(model, rank=rank, alpha=2 * rank, targets=targets, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters().items():
            scale = size / 2 if name.endswith("lora_B.weight") else 1.0
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(scale * draw / math.sqrt(parameter.shape[1]))
    return adapter


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative difference in norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def slopes(value: Callable[[], Tensor], inputs: Sequence[Tensor], step: float = 0.05) -> tuple[float, float]:
    """Slope of a function of these tensors, by autograd and by central differences (fourth order).

    Along a direction that is half the gradient (so that the slope is large against rounding), half random.
    """
    found = torch.autograd.grad(value(), inputs, allow_unused=True)
    gradient = [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
    generator = torch.Generator().manual_seed(2)
    random = [torch.randn(x.shape, generator=generator) for x in inputs]
    lengths = norm(gradient), norm(random)
    direction = [g / lengths[0] + r / lengths[1] for g, r in zip(gradient, random, strict=True)]
    by_autograd = sum(
        float((g.double() * d.double()).sum()) for g, d in zip(gradient, direction, strict=True)
    )
    starts = [x.detach().clone() for x in inputs]

    @torch.no_grad()
    def at(distance: float) -> float:
        for x, start, d in zip(inputs, starts, direction, strict=True):
            x.copy_(start + distance * d)
        return float(value())

    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    at(0.0)
    return by_autograd, (8 * near - far) / (12 * step)


class Redness:
    """A reward without weights: red minus the mean of green and blue."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        means = images.mean(dim=(-2, -1))  # [B, 3] or [B, F, 3]
        if means.ndim == 3:
            means = means.mean(1)
        return means[:, 0] - means[:, 1:].mean(1)
