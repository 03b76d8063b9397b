"""What a person's clicks are worth: three rounds of 16 on the demo model, by method and updates a round.

    python tests/reference/rating_rounds.py [rounds] [seeds]

A made-up person has a taste that the run never sees: the upper half of a round is good, the lower bad, and
15 % of the clicks say the opposite. What counts is the taste's mean on held-out noise, in standard errors of
the difference between the same pictures before and after; the judge says what became of the captions.
The workflow rlr-rate has its settings from here.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time

import torch
from torch import Tensor

from rlr_core.common.pending import Pending
from rlr_core.common.random_streams import torch_stream
from rlr_core.config import MethodConfig
from rlr_core.demo.preset import demo_config
from rlr_core.demo.scenes import BACKGROUND
from rlr_core.diffusion.models.loading import load_model
from rlr_core.evaluation.sampling import sample
from rlr_core.lora import apply_lora
from rlr_core.rewards import load_reward
from rlr_core.training.trainer import train

WRONG = 0.15
CLICKS = 16
PROMPTS = ["a red circle", "a blue square", "a green triangle", "a yellow circle"]
"""Those of the workflow rlr-rate."""
EACH = PROMPTS * 16


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
    "awm, 20 steps on the clicks": ({"name": "awm", "inner_steps": 20}, 1, 1e-3),
    "awm, 20 steps, 3e-3": ({"name": "awm", "inner_steps": 20}, 1, 3e-3),
    "awm, 10 steps, 1.5e-3": ({"name": "awm", "inner_steps": 10}, 1, 1.5e-3),
    "adaptive, 10 updates": ({"name": "adaptive"}, 10, 3e-3),
    "adaptive, 10 updates, 1e-2": ({"name": "adaptive"}, 10, 1e-2),
    "adaptive, 20 updates": ({"name": "adaptive"}, 20, 3e-3),
}
"""Name -> method, updates a round, learning rate."""


def clicks(taste, rounds: int, seed: int):
    """A person with a taste, who is wrong now and then and has had enough after some rounds."""
    generator, asked = torch_stream(seed, "clicks"), []

    def ask(images: Tensor, prompts: list[str]) -> Tensor:
        if len(asked) == rounds:
            raise Pending("That is enough.")
        asked.append(len(images))
        scores = taste(images, prompts)
        marks = torch.where(scores > scores.median(), 1.0, -1.0)
        wrong = torch.rand(len(marks), generator=generator) < WRONG
        return torch.where(wrong, -marks, marks)

    return ask


def measure(taste, method: dict, updates: int, rate: float, rounds: int, seed: int) -> str:
    """What became of the taste and of the judge, as text."""
    model, tastes = load_model("demo"), {"taste": taste, "judge": load_reward("judge")}
    with tempfile.TemporaryDirectory() as folder:
        config = demo_config(f"{folder}/run", seed)
        config.prompts = config.evaluation.prompts = PROMPTS
        config.steps, config.batch, config.samples_per_prompt = 10_000, CLICKS, 4
        config.method = MethodConfig(**method)
        config.optimizer = config.optimizer.replace(learning_rate=rate, warmup=0, ema_decay=0.0)
        config.evaluation.every, config.evaluation.samples = 10_000, 2
        ask = clicks(taste, rounds, seed)
        ratings = load_reward("ratings", ask=ask, clip=False, updates_per_round=updates)
        before = pictures(model, config.sampler)
        taken = train(model, ratings, config).step
        apply_lora(model, f"{folder}/run/lora.safetensors")
        after = pictures(model, config.sampler)
    gains = {name: score(after, EACH) - score(before, EACH) for name, score in tastes.items()}
    gain, error = gains["taste"].mean(), gains["taste"].std() / len(EACH) ** 0.5
    spread = tastes["taste"](before, EACH).std()
    return (
        f"{gain / spread:+.2f} deviations, {gain / error:+.1f} standard errors, judge "
        f"{gains['judge'].mean():+.2f}, {taken} updates"
    )


def pictures(model, sampler) -> Tensor:
    """Pictures of noise that training never sees."""
    return sample(model, EACH, range(10_000, 10_000 + len(EACH)), sampler, batch=64)


def main(rounds: int = 3, seeds: int = 2, *names: str) -> None:
    """Print a line for each way, taste and seed."""
    torch.set_num_threads(1)
    for name, way in WAYS.items():
        for taste, seed in itertools.product(TASTES, range(seeds)):
            if not names or name in names:
                started = time.monotonic()
                found = measure(taste, *way, rounds, seed)
                seconds = time.monotonic() - started
                print(f"{name:32s} {taste.__name__:13s} seed {seed}: {found}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
