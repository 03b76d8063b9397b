"""Training the built-in model on each reward that needs no file moves that reward up, beyond doubt."""

from __future__ import annotations

import open_clip
import pytest
import torch

from rlr_core.config import EvaluationConfig, LoraConfig, MethodConfig, OptimizerConfig, SamplerConfig
from rlr_core.demo.preset import demo_config
from rlr_core.diffusion.models.loading import load_model
from rlr_core.evaluation.measures import difference
from rlr_core.rewards import load_reward
from rlr_core.training.trainer import train

pytestmark = pytest.mark.slow

WEIGHTLESS = {
    "jpeg_compressibility": {},
    "jpeg_incompressibility": {},
    "mean_color": {},
    "brightness": {},
    "saturation": {},
    "contrast": {},
    "sharpness": {},
    "total_variation": {},
    "target_color": {},
}


NOISY = SamplerConfig(steps=4, eta=1.0, guidance=1.0, last_step_noise=0.05)


def gain(reward, tmp_path, steps=8, batch=8, sampler=NOISY, groups=1, rate=1e-2, **method):
    """Gain over standard errors, of held-out pictures of the same prompts and seeds."""
    base = demo_config(tmp_path / "run")
    config = base.replace(
        steps=steps, batch=batch, micro_batch=16, decode_batch=16, samples_per_prompt=groups,
        sampler=sampler,
        method=MethodConfig(**{"name": "adaptive", "budget": 1.0} | method),
        lora=LoraConfig(rank=8, targets="all"),
        optimizer=OptimizerConfig(learning_rate=rate, warmup=2),
        evaluation=EvaluationConfig(prompts=base.evaluation.prompts, samples=48, every=1000, batch=48),
    )  # fmt: skip
    result = train(load_model("demo"), reward, config)
    found = difference(result.before, result.after, "reward")
    return found.mean / ((found.high - found.mean) / 1.96)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_training_raises_a_reward_without_weights(name, tmp_path):
    """JPEG sizes are black boxes: their exact size is what rises, their DCT proxy only lowers the noise."""
    reward = load_reward(name, **WEIGHTLESS[name])
    assert gain(reward, tmp_path, steps=8 if reward.differentiable else 16) > 3


def test_training_raises_the_exact_jpeg_size_without_any_gradient(tmp_path):
    """By regression on finished pictures; the sampler's noise alone learns too little in so short a run."""
    reward = load_reward("jpeg_compressibility")
    assert not reward.differentiable
    sampler = SamplerConfig(steps=4, eta=0.0, guidance=1.0)
    assert gain(reward, tmp_path, steps=20, batch=16, sampler=sampler, groups=4, rate=2e-3, name="nft") > 3


def test_training_raises_a_random_clip(tmp_path):
    torch.manual_seed(0)
    clip = open_clip.model.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    )
    clip.requires_grad_(False).eval()
    known = {}

    def random_clip(images, prompts):
        for prompt in prompts:
            if prompt not in known:
                known[prompt] = clip.encode_text(open_clip.tokenize([prompt]), normalize=True)[0]
        small = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
        text = torch.stack([known[prompt] for prompt in prompts])
        return (clip.encode_image(small, normalize=True) * text).sum(1)

    assert gain(random_clip, tmp_path) > 3


def test_training_brings_pictures_closer_to_a_target(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), (40, 60, 160)).save(tmp_path / "target.png")
    assert gain(load_reward("target_picture", target=str(tmp_path / "target.png")), tmp_path) > 3
