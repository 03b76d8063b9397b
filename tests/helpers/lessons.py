"""A tiny model with an adapter, as the problem of a method that learns from finished pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.config.prompts import Prompt
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.rollout import Noise
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch, Scores
from rlr_core.lora.attach import attach
from rlr_core.methods import method_class

TEXTS = ("a cat", "a dog", "a red circle")


class Workbench:
    """A model whose adapter is no longer zero, a black-box reward, and a batch of any prompts."""

    def __init__(
        self, model, *, micro_batch: int = 4, steps: int = 4, eta: float = 0.0, guidance: float = 2.0
    ):
        sampler = SamplerConfig(steps=steps, eta=eta, guidance=guidance)
        self.model = model
        self.chain = Chain(model, model.schedule(sampler), guidance)
        self.adapter = attach(model, rank=2, seed=0)
        self.shake(0.2)
        self.book = PromptBook(model, [Prompt(text, (text,)) for text in TEXTS])
        self.shape = model.latent_shape(*model.default_size)
        self.problem = Problem(
            self.chain,
            self.adapter.parameters(),
            self.score,
            pathwise=False,
            differentiable=False,
            micro_batch=micro_batch,
            base=self.adapter.disabled,
            conditioning=self.book.conditioning,
        )

    @torch.no_grad()
    def shake(self, size: float, seed: int = 7) -> None:
        """Move the adapter by random numbers."""
        rng = torch.Generator().manual_seed(seed)
        for parameter in self.adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * size)

    @staticmethod
    def score(latents: Tensor, prompts, gradient: bool) -> Scores:
        return Scores(latents.flatten(1)[:, 0] + latents.flatten(1).square().mean(1))

    def batch(self, prompts: list[int], seed: int = 0) -> Batch:
        """A batch of the prompts of these numbers."""
        numbers = torch.arange(len(prompts)) + 100 * seed + 1
        return Batch(
            lambda index: Noise(numbers[index].tolist(), self.shape),
            self.book.conditioning(prompts),
            torch.tensor(prompts),
            [TEXTS[prompt] for prompt in prompts],
        )

    def method(self, name: str, **options):
        return method_class(name)(self.problem, MethodConfig(name, **options))
