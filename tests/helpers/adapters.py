"""What the tests of adapters share: making one, filling it with numbers, asking the denoiser something."""

from __future__ import annotations

import torch

from rlr_core import lora

PROMPTS = ["a cat", "a dog"]


def attach(model, **options):
    """`lora.attach`, into the text encoder too for a model that is marked so."""
    return lora.attach(model, **{"text_encoder": getattr(model, "text_encoder_too", False)} | options)


def output(model, seed=0):
    """What the denoiser says about fixed latents and prompts, [2, ...]."""
    shape = model.latent_shape(*model.default_size)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    return model.denoise(latents, 401.0, model.encode_prompts(PROMPTS))


def fill(adapter, std=0.1, seed=0):
    """Random matrices in place of the untrained ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return adapter
