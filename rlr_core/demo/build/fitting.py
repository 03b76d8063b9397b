"""What the three trainings of the demo share: where they run, one learning-rate curve, averaged weights, a
log."""

from __future__ import annotations

import copy
import math
import random
import time

import torch
from torch import Tensor, nn

from rlr_core.demo.scenes import Scene, draw, random_scene


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def warmed_cosine(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """The learning rate at `step`: a linear warm-up, then a cosine down to 2 % of `peak`."""
    warmup = min(warmup, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """One clipped step of `optimizer` down `loss` at learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


class Average:
    """An exponential moving average of a module's weights, in `self.module`."""

    def __init__(self, module: nn.Module, decay: float = 0.998):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        for mean, value in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


class Log:
    """Prints a line every `every` steps and at the last: `vae 400/7000 12s loss 0.0213`."""

    def __init__(self, name: str, steps: int, every: int):
        self.name, self.steps, self.every = name, steps, every
        self.start = time.monotonic()

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps - 1

    def __call__(self, step: int, **values: float) -> None:
        numbers = "  ".join(f"{key} {float(value):.4f}" for key, value in values.items())
        print(
            f"{self.name} {step + 1}/{self.steps}  {time.monotonic() - self.start:.0f}s  {numbers}",
            flush=True,
        )


class SceneStream:
    """An endless, seeded source of scenes and their pictures."""

    def __init__(self, seed: int, device: torch.device):
        self.random = random.Random(seed)
        self.rng = torch.Generator().manual_seed(seed)
        self.device = device

    def __call__(self, count: int) -> tuple[list[Scene], Tensor]:
        """`count` scenes and their pictures, [count, 3, 64, 64] in [0, 1]."""
        scenes = [random_scene(self.random) for _ in range(count)]
        return scenes, draw(scenes, self.rng).to(self.device)

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal noise in the shape of `like`, the same on every device."""
        return torch.randn(like.shape, generator=self.rng).to(self.device)
