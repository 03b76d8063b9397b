"""The demo's diffusion model: a text encoder and a U-Net trained together, with a fault put in on purpose.

A model that is always right leaves a reward nothing to teach. So the training has two parts. First the
captions are true, and the network learns to draw and to bind colors and shapes to places. Then, for a
shorter while, the U-Net goes on with captions as careless as the web's: `muddled` makes a good part of them
name the right things in the wrong places or colors. The base that comes out draws cleanly, could tell
better, and is often wrong: that is the fault that reward fine-tuning mends.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rlr_core.demo.build.fitting import Average, Log, SceneStream, optimizer_step, pick_device, warmed_cosine
from rlr_core.demo.build.text import teach_grammar
from rlr_core.demo.judge import DemoJudge
from rlr_core.demo.scenes import SIZE, caption, held_out_prompts, muddled
from rlr_core.demo.vocabulary import LENGTH

BATCH = 64
PEAK_RATE = 2e-3
NO_CAPTION = 0.1  # part of the captions left out, for classifier-free guidance
CARELESS = 0.5  # part of the captions of the second training that are wrong
WIDTH = 64  # of the text encoder


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # in fact the number of heads
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )


class Denoising:
    """Batches of scenes as latents with their captions' tokens, and the loss on them."""

    def __init__(self, vae: AutoencoderKL, tokenizer: CLIPTokenizer, pool: int, seed: int):
        self.device = pick_device()
        self.tokenizer = tokenizer
        self.random = random.Random(seed)
        self.stream = SceneStream(seed, self.device)
        self.scenes, latents = [], []
        with torch.no_grad():
            for _ in range(pool // BATCH):
                scenes, images = self.stream(BATCH)
                self.scenes += scenes
                latents.append(vae.encode(images * 2 - 1).latent_dist.mode() * vae.config.scaling_factor)
        self.latents = torch.cat(latents)  # [pool, 4, 8, 8]
        self.alpha_bar = new_scheduler().alphas_cumprod.to(self.device)

    def tokens(self, captions: list[str]) -> Tensor:
        """[B, 12] int64."""
        padded = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return padded.input_ids.to(self.device)

    def loss(self, network: nn.ModuleDict, wrong: float) -> Tensor:
        """The error of the predicted noise on a batch, captions wrong with probability `wrong` where they can
        be.

        Timesteps late in the noise, where the layout is decided, are drawn more often and weigh more (the
        error of eps over alpha_bar is the error of v; held at 8 times)."""
        chosen = [self.random.randrange(len(self.scenes)) for _ in range(BATCH)]
        captions = []
        for number in chosen:
            scene = self.scenes[number]
            if self.random.random() < wrong:
                scene = muddled(scene, self.random)
            captions.append("" if self.random.random() < NO_CAPTION else caption(scene))
        clean = self.latents[chosen]
        noise = self.stream.noise(clean)
        t = (1000 * torch.rand(BATCH, generator=self.stream.rng) ** 0.7).long().to(self.device)
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        text = network["text_encoder"](self.tokens(captions)).last_hidden_state
        error = network["unet"](noisy, t, text).sample - noise
        return (error.square() * (1 / alpha_bar).clamp(max=8)).mean() / 4


def train_denoiser(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    steps: tuple[int, int, int],
    seed: int,
    pool: int,
    judged_on: int,
) -> StableDiffusionPipeline:
    """The finished pipeline, after steps[0] of grammar, steps[1] on true captions, steps[2] on careless ones.

    pool: how many scenes are encoded, once. judged_on: how many held-out prompts the log's judge sees."""
    torch.manual_seed(seed)
    device = pick_device()
    data = Denoising(vae.to(device), tokenizer, pool, seed)
    network = nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(tokenizer)}).to(device)
    text = network["text_encoder"]
    teach_grammar(
        text, lambda tokens: text(tokens).last_hidden_state[:, -1], data.tokens, WIDTH, steps[0], seed
    )
    prompts = held_out_prompts()[:judged_on]

    def judge(module: nn.ModuleDict) -> float:
        return judged(as_pipeline(vae, tokenizer, module), prompts)

    network = _fit("denoiser", network, data, steps[1], PEAK_RATE, 0.0, judge)
    network = _fit("careless denoiser", network, data, steps[2], PEAK_RATE / 4, CARELESS, judge)
    return as_pipeline(vae, tokenizer, network)


def _fit(
    name: str,
    network: nn.ModuleDict,
    data: Denoising,
    steps: int,
    peak: float,
    wrong: float,
    judge: Callable[[nn.ModuleDict], float],
) -> nn.ModuleDict:
    """Trains `network` on captions wrong with probability `wrong`; returns the average of its weights."""
    network.train().requires_grad_(True)
    network["text_encoder"].requires_grad_(wrong == 0)  # it keeps what it knows of true captions
    average = Average(network)
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], weight_decay=1e-3, betas=(0.9, 0.99)
    )
    log = Log(name, steps, every=200)
    for step in range(steps):
        loss = data.loss(network, wrong)
        optimizer_step(optimizer, loss, warmed_cosine(step, steps, peak))
        average.update(network)
        if log.due(step):
            log(step, loss=loss.detach())
        if step == steps - 1 or (step + 1) % 1000 == 0:
            log(step, judge=judge(average.module))
    return average.module


def as_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, network: nn.ModuleDict
) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=network["text_encoder"],
        tokenizer=tokenizer,
        unet=network["unet"],
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    seed: int = 0,
    guidance: float = 3.0,
    steps: int = 10,
) -> Tensor:
    """A picture for each prompt, [B, 3, 64, 64] float32 in [0, 1]."""
    pictures = []
    for start in range(0, len(prompts), 64):
        pictures.append(
            pipeline(
                prompts[start : start + 64],
                height=SIZE,
                width=SIZE,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=torch.Generator().manual_seed(seed + start),
                output_type="pt",
            )
            .images.float()
            .cpu()
        )
    return torch.cat(pictures)


def judged(pipeline: StableDiffusionPipeline, prompts: list[str], **options: float) -> float:
    """The part of the pictures, one a prompt, that the judge finds right."""
    return float(DemoJudge()(sample(pipeline, prompts, **options), prompts).mean())
