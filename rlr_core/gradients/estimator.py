"""The mechanics that all walks share: roll out and score a batch, and estimate the gradient of J from that.

It sees a chain, parameters and a function that scores latents; what a reward or a model is stays outside, and
so does what a method is: whoever uses it brings the plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlr_core.common.distributed import Alone, World
from rlr_core.common.pending import Pending
from rlr_core.common.random_streams import seeds
from rlr_core.config import MethodConfig
from rlr_core.diffusion.chain import ChainLike
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Trajectory, rollout
from rlr_core.gradients.advantages import advantages
from rlr_core.gradients.backward import BackwardResult, Regularization, Signals, backward
from rlr_core.gradients.divergence import kl_to_base, least_sigma, total_kl
from rlr_core.gradients.plan import Plan
from rlr_core.gradients.samples import Batch, GradientEstimate, Rollout, Rollouts, Score, Scores
from rlr_core.gradients.statistics import RunningStatistics, Statistics
from rlr_core.gradients.zeroth_order import Perturbation


def _known(value: Tensor | None) -> Tensor:
    assert value is not None, "parts of one batch are scored alike"
    return value


def _nobody(phase: str, done: int, total: int) -> None:
    """Nobody is told."""


@dataclass
class Problem:
    """What is to be optimized, as far as gradients know it."""

    chain: ChainLike
    parameters: Sequence[Tensor]
    score: Score
    pathwise: bool
    """Whether the score can give a gradient (the reward's or its surrogate's)."""
    differentiable: bool = True
    """Whether that gradient is the reward's own."""
    micro_batch: int = 64
    """Trajectories on a device at a time."""
    graph_steps: int = 0
    """How many last steps of a rollout keep their graphs, so that a walk need not evaluate them again."""
    base: Callable[[], AbstractContextManager] = nullcontext
    """Context in which the chain is the base model's."""
    conditioning: Callable[[Tensor], Conditioning] | None = None
    """Conditioning for the prompts of given numbers, as `Batch.groups` has them."""
    prompts: Sequence[str] = ()
    """What the prompts of these numbers are."""
    seed: int = 0
    learning_rate: float = 1e-3
    """The run's, for a method that tries something out."""
    world: World | None = None
    """The processes that share a batch; None is this one alone."""
    on_phase: Callable[[str, int, int], None] = _nobody
    """Told 'rollout', 'reward' or 'backward', how many pictures are done and of how many."""


class Estimator:
    """Estimates gradients from plans; remembers what is averaged over updates."""

    def __init__(self, problem: Problem, options: MethodConfig, *, twins: bool, pathwise: bool):
        """twins: whether each trajectory has an antithetic twin with perturbed parameters; pathwise: whether
        the score's gradient is used where there is one."""
        self.problem, self.options, self.twins = problem, options, twins
        self.chain, self.parameters = problem.chain, problem.parameters
        self.pathwise = pathwise and problem.pathwise
        self.world = problem.world or Alone()
        self.sigmas = [self.chain.sigma(t) for t in range(1, self.chain.T + 1)]
        self.running = RunningStatistics(self.chain.T)
        self.mean_reward: float | None = None
        self.coefficient = 0.0
        """Running regression coefficient of the reward on its surrogate."""
        self.kl = float("nan")
        """KL divergence to the base when it was last measured."""

    # --- sampling ---

    def perturbation_groups(self, batch: int) -> np.ndarray:
        """[batch] which of the update's perturbations each trajectory belongs to."""
        return np.arange(batch) * self.options.perturbations // batch

    def roll_out(self, batch: Batch, step: int, plan: Plan) -> Rollouts | Pending:
        """Roll out and score this process's share of a batch.

        Where scores are not there yet, every trajectory is rolled out and asked about all the same: a person
        sees the whole batch at once.
        """
        groups = self.perturbation_groups(batch.size)
        chunks = list(self._chunks(groups))
        parts: list[Rollout] = []
        pending: Pending | None = None
        twins = 2 if self.twins else 1
        done, total = 0, twins * sum(map(len, chunks))
        for index in chunks:
            group = int(groups[int(index[0])])
            for twin in range(twins):
                self.problem.on_phase("rollout", done, total)
                part_plan = plan.select(index)
                sign = (1, -1)[twin] if self.twins else 0
                trajectory = self._trajectory(batch, index, part_plan, sign, step, group)
                self.problem.on_phase("reward", done, total)
                done += len(index)
                try:
                    scores = self.problem.score(trajectory.final, batch.texts(index), self.pathwise)
                except Pending as asked:
                    pending = asked
                    continue
                parts.append(Rollout(index, twin, trajectory, scores, part_plan, group))
        if bool(self.world.sum(torch.tensor(float(pending is not None)))):
            return pending or Pending("Other processes wait for their scores.")
        rewards = self._gather(parts, batch.size, lambda scores: scores.reward)
        surrogates = None
        if parts and parts[0].scores.surrogate is not None:
            surrogates = self._gather(parts, batch.size, lambda scores: _known(scores.surrogate))
        return Rollouts(batch, parts, rewards, surrogates, step)

    def _chunks(self, groups: np.ndarray) -> Iterator[Tensor]:
        """This process's places in the batch, in micro-batches that share a perturbation."""
        own = np.asarray(self.world.slice(len(groups)))
        for group in np.unique(groups[own]):
            members = own[groups[own] == group]
            for start in range(0, len(members), self.problem.micro_batch):
                yield torch.from_numpy(members[start : start + self.problem.micro_batch].copy())

    def _trajectory(
        self, batch: Batch, index: Tensor, plan: Plan, sign: int, step: int, group: int
    ) -> Trajectory:
        noise, conditioning = batch.noise(index), batch.conditioning.select(index)
        if not sign:  # a perturbation would change parameters that graphs still need
            walked = plan.visited.all(dim=1).nonzero().flatten().tolist()
            kept = {t for t in walked if t <= self.problem.graph_steps}
            return rollout(self.chain, noise, conditioning, graph_steps=kept)
        perturbation = self._perturbation(step, group)
        perturbed = plan.perturbed[:, 0]
        active = 0

        def before_step(t: int) -> None:
            nonlocal active
            needed = sign if perturbed[t] else 0
            if needed != active:
                perturbation.switch(needed)
                active = needed

        try:
            return rollout(self.chain, noise, conditioning, before_step=before_step)
        finally:
            perturbation.switch(0)

    def _perturbation(self, step: int, group: int) -> Perturbation:
        (seed,) = seeds(self.problem.seed, "perturbation", 1, step, group)
        return Perturbation(self.parameters, int(seed), self.options.perturbation)

    def _gather(self, parts: list[Rollout], batch: int, value: Callable[[Scores], Tensor]) -> Tensor:
        values = torch.zeros(2 if self.twins else 1, batch, dtype=torch.float64)
        for part in parts:
            values[part.twin, part.index] = value(part.scores).detach().double().cpu()
        return self.world.sum(values)

    # --- the gradient ---

    def gradient(
        self, rollouts: Rollouts, *, clip_range: float | None = None, replay: bool = False
    ) -> GradientEstimate:
        """The update's gradient. clip_range: PPO's; None for a gradient that is taken once.

        replay: the parameters have moved since the rollout, and nothing is to be remembered of it.
        """
        statistics = Statistics(self.chain.T)
        regularization = Regularization(
            self.problem.base, self.options.kl_weight, least_sigma(self.sigmas), clip_range
        )
        totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        twins, size = rollouts.rewards.shape
        kl = ratio_error = clipped = torch.zeros(())
        signals = self.signals(rollouts)
        done, total = 0, sum(len(part.index) for part in rollouts.parts)
        for part, signal in zip(rollouts.parts, signals, strict=True):
            self.problem.on_phase("backward", done, total)
            done += len(part.index)
            if not part.plan.visited.any():
                continue
            result: BackwardResult = backward(
                self.chain,
                part.trajectory,
                self.parameters,
                part.plan,
                signal,
                regularization=regularization,
                observer=None if replay else statistics,
            )
            torch._foreach_add_(totals, result.gradient, alpha=1 / (twins * size))
            kl = kl + result.kl.cpu() / (twins * size)
            ratio_error = torch.maximum(ratio_error, result.importance_ratio_error.cpu())
            clipped = clipped + result.clipped.cpu()
        if self.twins:
            perturbed_kl = self._perturbed_kl(rollouts)
            self._add_zeroth_order(rollouts, totals, perturbed_kl)
            kl = kl + perturbed_kl.sum() / (twins * size)
        self.world.sum_all(totals)
        if not replay:
            self._remember(rollouts, statistics)
        metrics = {}
        if self.options.kl_weight > 0 and not replay:
            metrics["kl"] = float(self.world.sum(kl))
        if clip_range is not None:
            metrics["importance_ratio/error"] = float(ratio_error)
            metrics["importance_ratio/clipped"] = float(self.world.sum(clipped))
        return GradientEstimate(totals, metrics)

    def measure_kl(self, rollouts: Rollouts) -> float:
        """Mean KL to the base of a few trajectories, over their noisy steps; NaN where none has noise."""
        if not any(self.sigmas):
            return float("nan")
        total, count = self.world.sum(total_kl(self.chain, self.problem.base, rollouts))
        return float(total / count)

    def _perturbed_kl(self, rollouts: Rollouts) -> Tensor:
        """KL divergence to the base [S, B] of the perturbed steps; 0 where nobody is held near it.

        No walk visits these steps: their pull is in what the twins differ in, as their reward is.
        """
        values = torch.zeros_like(rollouts.rewards)
        if self.options.kl_weight > 0:
            for part in rollouts.parts:
                perturbed = part.plan.perturbed[:, 0].nonzero().flatten().tolist()
                divergence = kl_to_base(self.chain, self.problem.base, part.trajectory, perturbed)
                values[part.twin, part.index] = divergence
        return values

    def signals(self, rollouts: Rollouts) -> list[Signals]:
        """Each part's advantages and pathwise start."""
        surrogates = None if rollouts.surrogates is None else self.coefficient * rollouts.surrogates
        groups = rollouts.batch.groups
        whole = advantages(rollouts.rewards, groups, self.options.advantage, self.mean_reward)
        first, residual = whole, None
        if surrogates is not None:
            # what is subtracted from R must be scaled as R is; its own baseline takes out the rest
            first = advantages(surrogates, groups, "leave_one_out")._replace(scale=whole.scale)
            residual = whole.values - first.values * whole.scale
        signals = []
        for part in rollouts.parts:
            device = part.trajectory.latents[0].device
            place = (part.twin, part.index)
            pathwise = part.scores.gradient
            if pathwise is not None:
                factor = whole.scale[place] * (1.0 if surrogates is None else self.coefficient)
                shape = (-1, *[1] * (pathwise.ndim - 1))
                pathwise = pathwise * factor.to(pathwise).reshape(shape)
            values = first.values[place] * (1.0 if surrogates is None else whole.scale[place])
            signals.append(
                Signals(
                    values.float().to(device),
                    pathwise,
                    None if residual is None else residual[place].float().to(device),
                )
            )
        return signals

    def _add_zeroth_order(self, rollouts: Rollouts, totals: list[Tensor], perturbed_kl: Tensor) -> None:
        values = (rollouts.rewards - self.options.kl_weight * perturbed_kl) / rollouts.batch.size
        own: dict[int, list[int]] = {}
        for part in rollouts.parts:
            if part.twin == 0:
                own.setdefault(part.group, []).extend(part.index.tolist())
        for group, members in own.items():
            plus, minus = values[:, members]
            self._perturbation(rollouts.step, group).add_gradient(totals, plus, minus)

    # --- what is remembered ---

    @property
    def calibrated(self) -> bool:
        """Whether anything is known that a first update could be planned from."""
        return bool(np.isfinite(self.running.square[1:]).any())

    def _remember(self, rollouts: Rollouts, statistics: Statistics) -> None:
        """Take this update into the running means, after its plan and mixture were used."""
        self.running.update(statistics.totals(self.world.sum))
        mean = float(rollouts.rewards.mean())
        self.mean_reward = mean if self.mean_reward is None else 0.9 * self.mean_reward + 0.1 * mean
        self.update_coefficient(rollouts)

    def update_coefficient(self, rollouts: Rollouts) -> None:
        """Take a batch into the running regression of the reward on its surrogate, where there is one."""
        if rollouts.surrogates is None:
            return
        surrogate, reward = rollouts.surrogates.flatten(), rollouts.rewards.flatten()
        centered = surrogate - surrogate.mean()
        slope = float(centered @ (reward - reward.mean()) / centered.square().sum().clamp(min=1e-12))
        self.coefficient = slope if self.coefficient == 0.0 else 0.8 * self.coefficient + 0.2 * slope

    def state_dict(self) -> dict[str, Tensor]:
        """What is averaged over updates, float64."""
        mean = float("nan") if self.mean_reward is None else self.mean_reward
        scalars = torch.tensor([mean, self.coefficient, self.kl], dtype=torch.float64)
        return {**self.running.state_dict(), "scalars": scalars}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        mean, self.coefficient, self.kl = state.pop("scalars").tolist()
        self.mean_reward = None if np.isnan(mean) else mean
        self.running.load_state_dict(state)
