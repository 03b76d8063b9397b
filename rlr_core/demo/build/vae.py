"""The demo's autoencoder: 64 x 64 pictures to 8 x 8 x 4 latents and back, an `AutoencoderKL` of 0.8 M
parameters."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from rlr_core.demo.build.fitting import Log, SceneStream, optimizer_step, pick_device, warmed_cosine
from rlr_core.demo.scenes import BACKGROUND, SIZE

BATCH = 16
PEAK_RATE = 1.5e-3
KL_WEIGHT = 4e-6


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def train_vae(steps: int, seed: int) -> AutoencoderKL:
    """An autoencoder for the scenes; its `scaling_factor` gives scaled latents unit variance."""
    torch.manual_seed(seed)
    device = pick_device()
    vae = new_vae().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=1e-4)
    stream = SceneStream(seed, device)
    log = Log("vae", steps, every=200)
    for step in range(steps):
        _, images = stream(BATCH)
        posterior = vae.encode(images.contiguous(memory_format=torch.channels_last) * 2 - 1).latent_dist
        latents = posterior.mean + posterior.std * stream.noise(posterior.mean)
        decoded = vae.decode(latents).sample / 2 + 0.5
        loss = reconstruction_loss(decoded, images) + KL_WEIGHT * posterior.kl().mean()
        optimizer_step(optimizer, loss, warmed_cosine(step, steps, PEAK_RATE))
        if log.due(step):
            l1 = (decoded - images).abs().mean()
            log(step, loss=loss.detach(), l1=l1.detach(), kl=posterior.kl().mean().detach())
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        spread = vae.encode(stream(256)[1] * 2 - 1).latent_dist.mode().std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    return vae


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 and squared error, three times as heavy on the shapes as on the background that fills most of a
    scene."""
    background = images.new_tensor(BACKGROUND)[None, :, None, None]
    weight = 1 + 2 * ((images - background).abs().amax(1, keepdim=True) > 0.1)
    error = decoded - images
    return (weight * (error.abs() + error.square())).mean()
