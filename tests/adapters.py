"""What the tests of adapters share: filling one with numbers, and asking the denoiser something fixed."""

from __future__ import annotations

import torch

PROMPTS = ["a cat", "a dog"]


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
