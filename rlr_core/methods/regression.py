"""What methods that learn from finished pictures share: noise them again, and regress.

Sample and score pictures with any sampler, then forget how they came about. A picture is noised to a random
level and the network's output there, told as a velocity v, is pulled to or from what would lead to the
picture (math.md section 7):

    u = -kappa (v - target) - lambda (v - anchor) ,     gradient += (d v / d theta)^T u

A method is a row of that table: its kappa and lambda, and whether the anchor is the policy that sampled or
the base model. No noise of the sampler, no gradient of the reward, one evaluation at a time in memory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rlr_core.common.distributed import Alone
from rlr_core.common.pending import Pending
from rlr_core.common.random_streams import seeds, stream
from rlr_core.config import MethodConfig, SamplerConfig
from rlr_core.diffusion import losses
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError
from rlr_core.gradients.advantages import advantages
from rlr_core.gradients.estimator import Problem
from rlr_core.gradients.samples import Batch, GradientEstimate
from rlr_core.methods.base import Method
from rlr_core.methods.policy_snapshot import Snapshot
from rlr_core.methods.sample_buffer import Lesson, Samples, blocks_of

LAG_GROWTH = 0.001
"""How much the snapshot's decay grows with every update (DiffusionNFT)."""
NORM_MARGIN = 0.05
"""How much longer than the base model's the network's output may get before the norm guard pulls."""


@dataclass
class Seen:
    """What the networks say of n noised rows, as their outputs are; nothing here has a graph."""

    output: Tensor
    """Of the present policy [n, ...]."""
    target: Tensor
    """[n, ...]."""
    old: Tensor
    """Of the policy that sampled [n, ...]."""
    base: Tensor | None
    """Of the base model [n, ...], where it is asked for."""
    values: Tensor
    """[n] of the lesson."""
    slopes: losses.Slopes

    def loss(self, output: Tensor) -> Tensor:
        """Mean square error of an output, told as a velocity, [n]."""
        return self.slopes.velocity**2 * (output - self.target).square().flatten(1).mean(1)

    @property
    def elements(self) -> int:
        """Numbers in one output."""
        return self.output[0].numel()


class Row(Method):
    """A row of the table of regressions: a method that learns from finished pictures."""

    uses_old: ClassVar[bool] = False
    """Whether its loss asks for the output of the policy that sampled."""
    uses_base: ClassVar[bool] = False
    """Whether its loss asks for the base model's output."""
    inner_steps: ClassVar[int] = 1
    """Optimizer steps per update, where the options leave it open."""

    def __init__(self, problem: Problem, options: MethodConfig):
        super().__init__(problem, options)
        if not isinstance(problem.chain, Chain):
            raise TypeError("Learning from finished pictures takes a chain of a diffusion model.")
        self.chain: Chain = problem.chain
        self.world = problem.world or Alone()
        self.snapshot = Snapshot(problem.parameters)
        self.mean_reward: float | None = None
        self.range = (options.least_noise, options.most_noise)

    @classmethod
    def check(cls, options: MethodConfig, sampler: SamplerConfig, batch: int) -> None:
        if batch < 2 and options.advantage != "running_mean":
            raise UserError("A batch of 1 has nothing to compare with: raise batch.")
        if options.least_noise >= options.most_noise:
            raise UserError(
                f"method.least_noise is {options.least_noise} and method.most_noise {options.most_noise}: "
                f"there is nothing between them; lower the first."
            )

    # --- what a method says ---

    @abstractmethod
    def lesson(self, samples: Samples, inner: int) -> Lesson:
        """What optimizer step `inner` of the update learns from, the same on every process."""

    @abstractmethod
    def coefficients(self, seen: Seen) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """kappa [n], and lambda [n] with its anchor, an output [n, ...], where there is one."""

    # --- sampling ---

    def collect(self, batch: Batch, step: int) -> Samples | Pending:
        """Sample by the policy that samples, and score."""
        self.snapshot.follow(min(LAG_GROWTH * self.snapshot.updates, self.options.snapshot_decay))
        own = torch.as_tensor(list(self.world.slice(batch.size)), dtype=torch.long)
        chunks = own.split(self.problem.micro_batch)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        pending: Pending | None = None
        with self._sampling_policy():
            for done, index in enumerate(chunks):
                self.problem.on_phase("rollout", done, len(chunks))
                kept, final = self._roll_out(batch, index)
                self.problem.on_phase("reward", done, len(chunks))
                try:
                    scores = self.problem.score(final, batch.texts(index), False)
                except Pending as asked:
                    pending = asked
                    continue
                parts.append((index, kept, scores.reward.detach().double().cpu()))
        if bool(self.world.sum(torch.tensor(float(pending is not None)))):
            return pending or Pending("Other processes wait for their scores.")
        rewards = torch.zeros(1, batch.size, dtype=torch.float64)
        latents = torch.zeros(batch.size, *parts[0][1].shape[1:], device=parts[0][1].device)
        for index, kept, reward in parts:
            rewards[0, index] = reward
            latents[index.to(latents.device)] = kept
        return Samples(batch, self.world.sum(latents), self.world.sum(rewards), step)

    def _sampling_policy(self) -> AbstractContextManager:
        return nullcontext() if self.snapshot.is_current() else self.snapshot.installed()

    def _roll_out(self, batch: Batch, index: Tensor) -> tuple[Tensor, Tensor]:
        """Latents to keep and final latents [n, ...] of some of the batch."""
        conditioning = batch.conditioning.select(index)
        final = rollout(self.chain, batch.noise(index), conditioning, keep=False).final
        return final, final

    def whole_batch(self, samples: Samples, values: Tensor) -> Lesson:
        """Every sample of the batch, those of a prompt at one noise level."""
        batch = samples.batch
        return Lesson(
            samples.latents,
            batch.conditioning,
            values.float(),
            blocks_of(batch.groups),
            torch.arange(batch.size),
        )

    def standardized_advantages(self, samples: Samples) -> Tensor:
        """[B] advantages over their root mean square in the batch."""
        values = advantages(
            samples.rewards, samples.batch.groups, self.options.advantage, self.mean_reward
        ).values[0]
        return values / (values.square().mean().sqrt() + 1e-8)

    # --- the gradient ---

    def gradients(self, samples: Samples) -> Iterator[GradientEstimate]:
        for inner in range(self.options.inner_steps or self.inner_steps):
            yield self._gradient(self.lesson(samples, inner), samples.step, inner)
        mean = float(samples.rewards.mean())
        self.mean_reward = mean if self.mean_reward is None else 0.9 * self.mean_reward + 0.1 * mean

    def _gradient(self, lesson: Lesson, step: int, inner: int) -> GradientEstimate:
        parameters, times = self.problem.parameters, self.options.noise_levels
        totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        noise_seeds = seeds(self.problem.seed, "noise again", max(lesson.size, 1), step, inner)
        shares = self._shares(
            len(lesson.blocks) * times, stream(self.problem.seed, "noise level", step, inner)
        )
        sums: dict[str, Tensor] = {"loss": torch.zeros(())}
        old = self.uses_old and not self.snapshot.is_current()
        own = range(self.world.rank, len(lesson.blocks), self.world.size)
        for done, block in enumerate(own):
            self.problem.on_phase("backward", done, len(own))
            for time in range(times):
                for index in self._chunks(lesson, lesson.blocks[block]):
                    noise = Noise(
                        noise_seeds[lesson.noise[index].numpy()].tolist(),
                        lesson.latents.shape[1:],
                        lesson.latents.device,
                    )
                    share = shares[block * times + time]
                    gradient, figures = self._of_rows(lesson, index, share, noise.at(time), old)
                    torch._foreach_add_(totals, gradient, alpha=1 / (lesson.size * times))
                    for name, value in figures.items():
                        sums[name] = sums.get(name, torch.zeros(())) + value.sum().cpu()
        self.world.sum_all(totals)
        count = max(lesson.size * times, 1)
        return GradientEstimate(totals, {name: float(self.world.sum(v)) / count for name, v in sums.items()})

    def _chunks(self, lesson: Lesson, block: Tensor) -> tuple[Tensor, ...]:
        """A block in pieces of the micro-batch, whole units in each."""
        units = max(1, self.problem.micro_batch // lesson.unit)
        return block.split(units * lesson.unit)

    def _shares(self, count: int, rng: np.random.Generator) -> list[float]:
        """`count` noise levels, as shares of the training range: spread evenly over the law, shuffled."""
        quantiles = (rng.permutation(count) + rng.random(count)) / max(count, 1)
        low, high = self.range
        if self.options.noise_law == "uniform":
            return (low + (high - low) * quantiles).tolist()
        levels = [share for t in range(1, self.chain.T + 1) if low <= (share := self.chain.share(t)) <= high]
        return [levels[int(quantile * len(levels))] for quantile in quantiles]

    def _of_rows(
        self, lesson: Lesson, index: Tensor, share: float, z: Tensor, old: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Gradient summed over some rows at one noise level, and figures [n] for the metrics."""
        chain, options, guided = self.chain, self.options, self.options.train_guided
        level = chain.noise_level(share)
        places = index.to(lesson.latents.device)
        noised = losses.add_noise(lesson.latents[places], lesson.level, level, z)
        conditioning = lesson.conditioning.select(index)
        target = losses.target(chain.model.prediction, noised, level)
        of_base = of_old = None
        with torch.no_grad():
            if self.uses_base or options.kl_weight > 0 or options.norm_guard > 0:
                with self.problem.base():
                    of_base = chain.predict(noised.latents, share, conditioning, guided)
            if old:
                with self.snapshot.installed():
                    of_old = chain.predict(noised.latents, share, conditioning, guided)
        with torch.enable_grad():
            output = chain.predict(noised.latents, share, conditioning, guided)
        now = output.detach()
        seen = Seen(
            now,
            target,
            now if of_old is None else of_old,
            of_base,
            lesson.values[index].to(now),
            losses.slopes(chain.model.prediction, level),
        )
        kappa, held = self.coefficients(seen)
        u = -column(kappa * noised.weight, now) * (now - target)
        if held is not None:
            lam, anchor = held
            u = u - column(lam, now) * (now - anchor)
        square = seen.slopes.velocity**2
        u = square * u
        figures = {"loss": seen.loss(now)}
        if of_base is not None:
            figures["distance/base"] = square * (now - of_base).square().flatten(1).mean(1)
            if options.kl_weight > 0:
                u = u - (2 * options.kl_weight * square / seen.elements) * (now - of_base)
            if options.norm_guard > 0:
                u = u - options.norm_guard * norm_hinge_gradient(now, of_base)
        gradient = torch.autograd.grad(output, list(self.problem.parameters), u, allow_unused=True)
        pairs = zip(gradient, self.problem.parameters, strict=True)
        return [torch.zeros_like(p) if g is None else g.float() for g, p in pairs], figures

    # --- what is remembered ---

    def state_dict(self) -> dict[str, Tensor]:
        mean = float("nan") if self.mean_reward is None else self.mean_reward
        state = {f"snapshot.{name}": value for name, value in self.snapshot.state_dict().items()}
        return state | {"mean_reward": torch.tensor(mean, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        mean = float(state["mean_reward"])
        self.mean_reward = None if np.isnan(mean) else mean
        beginning = "snapshot."
        self.snapshot.load_state_dict(
            {name[len(beginning) :]: value for name, value in state.items() if name.startswith(beginning)}
        )


def norm_hinge_gradient(output: Tensor, base: Tensor) -> Tensor:
    """Gradient in `output` [n, ...] of relu(|output| / |base| - 1 - margin)^2 (NormGuard, 2606.27771)."""
    length = column(output.flatten(1).norm(dim=1).clamp(min=1e-12), output)
    of_base = column(base.flatten(1).norm(dim=1).clamp(min=1e-12), output)
    excess = (length / of_base - 1 - NORM_MARGIN).clamp(min=0)
    return 2 * excess * output / (length * of_base)


def column(per_row: Tensor, like: Tensor) -> Tensor:
    """[n] -> [n, 1, ...] with the rank of `like`."""
    return per_row.reshape(-1, *[1] * (like.ndim - 1)).to(like)
