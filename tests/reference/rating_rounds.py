"""What a person's clicks are worth: three rounds of 16 on the demo model, by method and updates a round.

    python tests/reference/rating_rounds.py [rounds] [seeds]

A made-up person has a taste that the run never sees: the upper half of a round is good, the lower bad, and
15 % of the clicks say the opposite. What counts is the taste's mean on held-out captions and noise, in
standard errors of the difference between the same pictures before and after; the judge says what became of
the captions. nodes/rate.py has its default from here.
"""

from __future__ import annotations

import sys
import tempfile
import time

import torch
from torch import Tensor

from rlr_core.common.random_streams import torch_stream
from rlr_core.config import MethodConfig
from rlr_core.demo.preset import demo_config
from rlr_core.demo.scenes import BACKGROUND, held_out_prompts
from rlr_core.diffusion.models.loading import load_model
from rlr_core.evaluation.measures import difference
from rlr_core.evaluation.sampling import evaluate
from rlr_core.rewards import load_reward
from rlr_core.training.trainer import train

WRONG = 0.15
CLICKS = 16


def large(images: Tensor, prompts: list[str]) -> Tensor:
    """Much of the picture is something."""
    background = torch.tensor(BACKGROUND, device=images.device)[:, None, None]
    return ((images - background).abs().amax(1) > 0.15).float().mean((1, 2))


def crowded_left(images: Tensor, prompts: list[str]) -> Tensor:
    """What there is, is on the left."""
    ink = 1 - images.mean(1)
    places = torch.linspace(1, -1, images.shape[-1], device=images.device)
    return (ink * places).mean((1, 2)) / ink.mean((1, 2))


TASTES = (crowded_left, large)
WAYS = {
    "adaptive, 1 update": ({"name": "adaptive"}, 1),
    "adaptive, 10 updates": ({"name": "adaptive"}, 10),
    "adaptive, 20 updates": ({"name": "adaptive"}, 20),
    "adaptive, 40 updates": ({"name": "adaptive"}, 40),
    "awm, 20 optimizer steps on the clicks": ({"name": "awm", "inner_steps": 20}, 1),
    "awm, 20 updates": ({"name": "awm"}, 20),
    "nft, 20 updates": ({"name": "nft"}, 20),
}


def clicks(taste, seed: int):
    """A person with a taste, who is wrong now and then."""
    generator = torch_stream(seed, "clicks")

    def ask(images: Tensor, prompts: list[str]) -> Tensor:
        scores = taste(images, prompts)
        marks = torch.where(scores > scores.median(), 1.0, -1.0)
        wrong = torch.rand(len(marks), generator=generator) < WRONG
        return torch.where(wrong, -marks, marks)

    return ask


def measure(taste, method: dict, updates: int, rounds: int, seed: int) -> tuple[float, float, float]:
    """Gain of the taste, its standard error, and the gain of the judge."""
    with tempfile.TemporaryDirectory() as folder:
        config = demo_config(f"{folder}/run", seed)
        config.steps, config.batch, config.samples_per_prompt = rounds * updates, CLICKS, 4
        config.method = MethodConfig(**method)
        config.evaluation.every, config.evaluation.samples = 10_000, 16
        reward = load_reward("ratings", ask=clicks(taste, seed), clip=False, updates_per_round=updates)
        model, rewards = load_model("demo"), {"taste": taste, "judge": "judge"}
        before = evaluate(model, rewards, held_out_prompts(), config.sampler, samples=240, seed=99, batch=64)
        result = train(model, reward, config)
        assert reward.rounds >= rounds
        after = evaluate(model, rewards, held_out_prompts(), config.sampler, samples=240, seed=99, batch=64)
        result.lora.adapter.detach()
    gain = difference(before, after, "taste")
    error = (gain.high - gain.low) / 2 / 1.96
    return gain.mean, error, difference(before, after, "judge").mean, reward.rounds


def main(rounds: int = 3, seeds: int = 2, *names: str) -> None:
    """Print a line for each way, taste and seed."""
    torch.set_num_threads(1)
    for name, (method, updates) in WAYS.items():
        for taste in TASTES:
            for seed in range(seeds):
                if names and name not in names:
                    continue
                started = time.monotonic()
                gain, error, judge, asked = measure(taste, method, updates, rounds, seed)
                print(
                    f"{name:40s} {taste.__name__:13s} seed {seed}: {gain:+.3f}, {gain / error:+6.1f} errors, "
                    f"judge {judge:+.3f}, {asked} rounds, {time.monotonic() - started:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
