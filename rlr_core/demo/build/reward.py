"""Trains the demo's reward to tell captions that fit from captions that nearly fit, and to hold when it is
pushed.

A reward that is optimized through its gradient is attacked, so it trains on what an attack would use:
pictures out of the autoencoder, from noised latents, blurred, noisy and tinted; broken pictures, pieced
together in latent space, that no caption fits; and half of every batch moved a step along the gradient that
raises the loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from open_clip.model import CLIP
from torch import Tensor

from rlr_core.demo.build.fitting import Average, Log, SceneStream, optimizer_step, pick_device, warmed_cosine
from rlr_core.demo.build.text import teach_grammar
from rlr_core.demo.judge import look
from rlr_core.demo.reward import match_logit, normalized
from rlr_core.demo.scenes import SIZE, Scene, canonical, caption, muddled, random_scene, swapped
from rlr_core.demo.vocabulary import LENGTH

BATCH = 64
PEAK_RATE = 1.5e-3
NEGATIVES = 4  # hard negatives of each caption
ATTACK = 8 / 255  # greatest change of a pixel in an attacked picture


def clip_config(vocabulary: int) -> dict:
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": 8,
            "width": 96,
            "head_width": 24,
            "layers": 4,
            "mlp_ratio": 3.0,
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": vocabulary,
            "width": 64,
            "heads": 4,
            "layers": 2,
        },
        "init_logit_scale": 2.0,
        "init_logit_bias": -4.0,
    }


class Pictures:
    """A pool of pictures as a generator would make them: right, worn, and broken."""

    def __init__(self, vae: AutoencoderKL, pool: int, seed: int):
        self.device = pick_device()
        self.random = random.Random(seed)
        self.stream = SceneStream(seed, self.device)
        self.scenes: list[Scene | None] = []  # None: broken, no caption fits
        kept = []
        while len(self.scenes) < pool:
            scenes, clean = self.stream(BATCH)
            pictures, labels = self._make(vae, scenes, clean)
            self.scenes += labels
            kept.append((pictures.clamp(0, 1) * 255).round().byte())
        self.pictures = torch.cat(kept)  # [pool, 3, 64, 64] uint8

    @torch.no_grad()
    def _make(
        self, vae: AutoencoderKL, scenes: list[Scene], clean: Tensor
    ) -> tuple[Tensor, list[Scene | None]]:
        """A batch: an eighth as drawn, half decoded from noised latents, the rest pieced together."""
        count = len(scenes)
        drawn, worn = count // 8, 5 * count // 8
        latents = vae.encode(clean * 2 - 1).latent_dist.mode()
        strength = (
            torch.linspace(0, 0.4, count, device=self.device).view(-1, 1, 1, 1) / vae.config.scaling_factor
        )
        strength[worn:] /= 4
        other = latents.roll(1, 0)
        axis = torch.arange(8, device=self.device)
        cut = torch.rand(count, generator=self.stream.rng).to(self.device) * 5 + 1.5
        seam = torch.sigmoid(3 * (axis - cut[:, None]))  # [B, 8]
        mix = torch.where(
            (torch.arange(count, device=self.device) % 2 == 0).view(-1, 1, 1),
            seam[:, None, :].expand(-1, 8, -1),
            seam[:, :, None].expand(-1, -1, 8),
        )[:, None]
        mix[count - (count - worn) // 4 :] = (
            0.5  # the last ones are half one scene and half another everywhere
        )
        pieced = latents * mix + other * (1 - mix)
        latents = torch.cat([latents[:worn], pieced[worn:]])
        decoded = vae.decode(latents + strength * self.stream.noise(latents)).sample / 2 + 0.5
        pictures = torch.cat([clean[:drawn], decoded[drawn:]])
        labels: list[Scene | None] = list(scenes[:worn])
        labels += [_scene_of(things) for things in look(pictures[worn:].clamp(0, 1))]
        return pictures, labels

    def batch(self) -> tuple[Tensor, list[Scene | None]]:
        """Pictures [64, 3, 64, 64] in [0, 1], worn a little more, and what they show."""
        chosen = [self.random.randrange(len(self.scenes)) for _ in range(BATCH)]
        images = self.pictures[chosen].float() / 255
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        rng = self.stream.rng

        def random_of(*shape: int) -> Tensor:
            return torch.rand(BATCH, *shape, generator=rng).to(self.device)

        images = torch.lerp(images, blurred, random_of(1, 1, 1) * (random_of(1, 1, 1) < 0.3))
        images = images * (0.94 + 0.12 * random_of(3, 1, 1)) + 0.08 * (random_of(1, 1, 1) - 0.5)
        images = images + 0.04 * random_of(1, 1, 1) * self.stream.noise(images)
        return images.clamp(0, 1), [self.scenes[number] for number in chosen]


def _scene_of(things: list) -> Scene | None:
    """The scene that was seen, or None where it is none of the world's or its relation is not plain."""
    if len(things) == 1 and things[0].thing:
        return Scene(things[0].thing)
    if len(things) != 2 or not (things[0].thing and things[1].thing) or things[0].thing == things[1].thing:
        return None
    first, second = things
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dy) > 2 * abs(dx):
        relation = "above" if dy > 0 else "below"
    elif abs(dx) > 2 * abs(dy):
        relation = "left of" if dx > 0 else "right of"
    else:
        return None
    return Scene(first.thing, relation, second.thing)


class Captions:
    """The captions of a batch of pictures: one that fits each (any, for a broken one), and near misses."""

    def __init__(self, scenes: list[Scene | None], rng: random.Random, device: torch.device):
        right = [scene or random_scene(rng) for scene in scenes]
        wrong = [
            muddled(scene, rng) if scene.second and number % 2 else swapped(scene, rng)
            for scene in right
            for number in range(NEGATIVES)
        ]
        self.texts = [caption(scene) for scene in right + wrong]
        numbers: dict[Scene, int] = {}
        keys = [numbers.setdefault(canonical(scene), len(numbers)) for scene in right + wrong]
        shown = [numbers[canonical(scene)] if scene else -1 for scene in scenes]
        rows = torch.arange(len(scenes))
        owner = torch.cat([rows, rows.repeat_interleave(NEGATIVES)])
        self.match = (torch.tensor(shown)[:, None] == torch.tensor(keys)).to(
            device
        )  # [B, T], T = B (1 + NEGATIVES)
        self.own = (rows[:, None] == owner).to(device)  # [B, T]: its caption, its negatives


def matching_loss(odds: Tensor, match: Tensor, own: Tensor) -> Tensor:
    """The loss of the log-odds [B, T] that pictures and captions match, given which do.

    Two parts: whichever caption fits is picked from all the others; and each pair is judged alone, hard
    negatives and fits counting half each, so that one threshold serves all."""
    fits = match.any(1)
    fitting = odds.masked_fill(~match, -torch.inf)[fits].logsumexp(1)
    picked = (odds[fits].logsumexp(1) - fitting).sum() / len(odds)
    alone = F.binary_cross_entropy_with_logits(odds, match.float(), reduction="none")
    weight = torch.where(own, torch.where(match, NEGATIVES, 1), 2 / len(odds))
    return picked + 2 * (weight * alone).sum() / weight.sum()


def log_odds(clip: CLIP, images: Tensor, text: Tensor) -> Tensor:
    """images [B, 3, 64, 64] in [0, 1], text [T, 64] of unit length -> log-odds [B, T] that they match."""
    return match_logit(clip, clip.encode_image(normalized(images), normalize=True) @ text.T)


def attacked(
    clip: CLIP, images: Tensor, text: Tensor, match: Tensor, own: Tensor, stream: SceneStream
) -> Tensor:
    """The images, each pixel moved by up to ATTACK to raise the loss (one step, random start)."""
    start = (images + ATTACK / 2 * stream.noise(images).clamp(-1, 1)).requires_grad_(True)
    loss = matching_loss(log_odds(clip, start, text.detach()), match, own)
    (gradient,) = torch.autograd.grad(loss, start)
    moved = start.detach() + ATTACK * gradient.sign()
    return torch.minimum(torch.maximum(moved, images - ATTACK), images + ATTACK).clamp(0, 1)


def train_reward(
    vae: AutoencoderKL,
    tokenize: Callable[[list[str]], Tensor],
    vocabulary: int,
    steps: tuple[int, int],
    seed: int,
    pool: int,
) -> CLIP:
    """A CLIP that matches pictures and captions: steps[0] of grammar, then steps[1] (see the module)."""
    torch.manual_seed(seed)
    device = pick_device()
    data = Pictures(vae.to(device), pool, seed)
    clip = CLIP(**clip_config(vocabulary)).to(device)
    teach_grammar(clip, clip.encode_text, tokenize, clip.text_projection.shape[1], steps[0], seed)
    average = Average(clip)
    optimizer = torch.optim.AdamW(clip.parameters(), weight_decay=1e-2, betas=(0.9, 0.98))
    log = Log("reward", steps[1], every=100)
    for step in range(steps[1]):
        images, scenes = data.batch()
        captions = Captions(scenes, data.random, device)
        match, own = captions.match, captions.own
        text = clip.encode_text(tokenize(captions.texts).to(device), normalize=True)
        if step > steps[1] // 5:
            worse = attacked(clip, images[::2], text, match[::2], own[::2], data.stream)
            images = torch.stack([worse, images[1::2]], 1).flatten(0, 1)
        odds = log_odds(clip, images, text)
        optimizer_step(optimizer, matching_loss(odds, match, own), warmed_cosine(step, steps[1], PEAK_RATE))
        average.update(clip)
        if log.due(step):
            log(step, **_margins(odds.detach(), scenes))
    return average.module


def _margins(odds: Tensor, scenes: list[Scene | None]) -> dict[str, float]:
    """How often a fitting caption beats its hard negatives, all of them and each; how sure of fits and of
    breaks."""
    count = len(scenes)
    real = torch.tensor([scene is not None for scene in scenes])
    right = odds[:, :count].diagonal().cpu()
    wrong = torch.stack([odds[row, count + row * NEGATIVES :][:NEGATIVES] for row in range(count)]).cpu()
    beats = right[:, None] > wrong
    return {
        "all": beats[real].all(1).float().mean(),
        "each": beats[real].float().mean(),
        "fit": right[real].sigmoid().mean(),
        "miss": wrong[real].sigmoid().mean(),
        "broken": right[~real].sigmoid().mean(),
    }
