"""What the engine costs: a rollout against diffusers' own pipeline, and the peak memory of an update."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from rlr_core.config import SamplerConfig, TrainConfig, config_from_dict


def rollout_against_pipeline(
    path: str, prompts: list[str], sampler: SamplerConfig, repeats: int = 5
) -> dict[str, float]:
    """Seconds that the same pictures take, ours and diffusers' StableDiffusionPipeline; best of `repeats`.

    path: a diffusers folder. Both sample latents and decode them, in turns in one process.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from rlr_core.config.prompts import Prompt
    from rlr_core.diffusion.chain import Chain
    from rlr_core.diffusion.conditioning import PromptBook
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.diffusion.rollout import Noise, rollout

    model = load_model(path)
    pipeline = StableDiffusionPipeline.from_pretrained(path, torch_dtype=model.dtype, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(model.device)
    height, width = model.default_size
    shape = model.latent_shape(height, width)

    @torch.no_grad()
    def ours() -> Any:
        book = PromptBook(model, [Prompt(text, (text,)) for text in prompts])
        chain = Chain(model, model.schedule(sampler), sampler.guidance)
        noise = Noise(range(len(prompts)), shape, model.device)
        latents = rollout(chain, noise, book.conditioning(range(len(prompts))), keep=True).final
        return model.decode(latents).clamp(0, 1).cpu()

    def theirs() -> Any:
        return pipeline(
            prompts, height=height, width=width, num_inference_steps=sampler.steps, eta=sampler.eta,
            guidance_scale=sampler.guidance, generator=torch.Generator().manual_seed(0), output_type="pt",
        ).images.cpu()  # fmt: skip

    best = {"ours": float("inf"), "diffusers": float("inf")}
    for turn in range(repeats + 1):  # the first round warms up
        for name, work in (("ours", ours), ("diffusers", theirs)):
            start = time.perf_counter()
            work()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def update_memory(config: TrainConfig) -> int:
    """Peak bytes of one update, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "rlr_core.benchmarks.costs"], input=json.dumps(config.to_dict()), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def _one_update(config: TrainConfig) -> int:
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.rewards import load_reward
    from rlr_core.training.metrics import peak_bytes
    from rlr_core.training.trainer import Trainer

    model = load_model(config.model, config.device, config.dtype)
    trainer = Trainer(model, load_reward(config.reward, **config.reward_options), config)
    trainer.prepare()
    trainer.update()
    return peak_bytes(model.device)


if __name__ == "__main__":
    print(_one_update(config_from_dict(json.load(sys.stdin))))
