"""One update's gradient estimate: rollouts, rewards, advantages, and the walk back, for any method.

It sees a chain, parameters, and a function that scores latents; what a reward or a model is stays outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlr_core.common.distributed import Alone, World
from rlr_core.config import MethodConfig
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Noise, Trajectory, rollout
from rlr_core.errors import UserError
from rlr_core.gradients.advantages import advantages
from rlr_core.gradients.backward import ChainLike, Proximity, Signals, WalkResult, walk
from rlr_core.gradients.plan import Plan
from rlr_core.gradients.statistics import Running, Statistics, mixing_share
from rlr_core.gradients.zeroth_order import Perturbation
from rlr_core.methods.table import METHODS, Setting


@dataclass
class Scores:
    """What the reward says about a batch of final latents."""

    reward: Tensor
    """[B]."""
    gradient: Tensor | None = None
    """dR/dx_0 [B, ...], or of the surrogate; None for a black box."""
    surrogate: Tensor | None = None
    """[B] value of the differentiable stand-in that `gradient` belongs to; None when it is the reward's."""


@dataclass
class Batch:
    """The trajectories of an update, over all processes."""

    noise: Callable[[Tensor], Noise]
    """Noise of some of them, by index [N]."""
    conditioning: Conditioning
    """Of all of them."""
    groups: Tensor
    """[B] integers: samples of one prompt share one."""

    @property
    def size(self) -> int:
        return len(self.groups)


@dataclass
class Rollout:
    """One micro-batch with its rewards, waiting for the walk."""

    index: Tensor
    """[N] places in the batch."""
    twin: int
    """0, or 1 for the mirrored twins."""
    trajectory: Trajectory
    scores: Scores
    plan: Plan
    group: int
    """Which perturbation it belongs to."""


@dataclass
class Rollouts:
    """A whole update's rollouts on this process, and the rewards of all processes."""

    parts: list[Rollout]
    rewards: Tensor
    """[S, B] float64, S = 2 with twins."""
    surrogates: Tensor | None
    """[S, B] float64."""
    step: int


@dataclass
class Estimate:
    """An estimate of the gradient of J, for ascent, averaged over the batch and over processes."""

    gradient: list[Tensor]
    kl: float
    """Mean over trajectories of the summed KL to the base, over the visited steps; NaN when not measured."""
    ratio_error: float
    """Largest |rho - 1| (ddpo)."""
    clipped: float
    """Likelihood ratios that were clipped (ddpo)."""


class Estimator:
    """Estimates gradients with one method; remembers what the method averages over updates."""

    def __init__(
        self,
        chain: ChainLike,
        parameters: list[Tensor],
        options: MethodConfig,
        score: Callable[[Tensor, Tensor, bool], Scores],
        *,
        pathwise: bool,
        differentiable: bool = True,
        micro_batch: int = 64,
        base: Callable[[], AbstractContextManager] = nullcontext,
        seed: int = 0,
        world: World | None = None,
        on_phase: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ):
        """score: (x_0 [N, ...], index [N], whether a gradient is wanted) -> Scores.

        pathwise: whether the score can give a gradient (the reward's or its surrogate's); differentiable:
        whether that gradient is the reward's own; base: context in which the chain is the base model's;
        on_phase: told 'rollout', 'reward' or 'walk', how much is done and of how much.
        """
        self.chain, self.parameters, self.options = chain, parameters, options
        self.score, self.pathwise, self.differentiable = score, pathwise, differentiable
        self.micro_batch, self.base, self.seed = micro_batch, base, seed
        self.world = world or Alone()
        self.on_phase = on_phase
        self.method = METHODS[options.name]
        self.sigmas = [chain.sigma(t) for t in range(1, chain.T + 1)]
        self.running = Running(chain.T)
        self.mean_reward: float | None = None
        self.coefficient = 0.0
        """Running regression coefficient of the reward on its surrogate."""
        if self.method.pathwise == "needed" and not differentiable:
            raise UserError(
                f"Method {options.name!r} needs a differentiable reward and this one gives no gradient: use "
                f"adaptive, rlr, likelihood_ratio, ddpo or zeroth_order."
            )
        if not pathwise and self.method.baseline and not any(self.sigmas):
            raise UserError(
                "A reward without gradient learns from the sampler's noise and there is none: set "
                "sampler.eta above 0, or use zeroth_order."
            )

    # --- sampling ---

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` is due before the first gradient."""
        return self.method.calibrates and not np.isfinite(self.running.square[1:]).any()

    def hidden_steps(self) -> int:
        """How many last steps the reward cannot reach, for lack of a gradient and of noise (rule 6)."""
        if self.method.name == "zeroth_order" or self.differentiable and self.method.pathwise != "no":
            return 0
        noisy = [t for t, sigma in enumerate(self.sigmas, start=1) if sigma > 0]
        return (noisy[0] if noisy else self.chain.T + 1) - 1

    def sample(self, step: int, batch: Batch) -> Rollouts:
        """Roll out and score this process's share of the batch."""
        groups = np.arange(batch.size) * self.options.perturbations // batch.size
        plan = self._plan(step, groups)
        twins = self.method.perturbs(self.options)
        chunks = list(self._chunks(groups))
        parts: list[Rollout] = []
        for done, index in enumerate(chunks):
            group = int(groups[int(index[0])])
            for twin in range(2 if twins else 1):
                self.on_phase("rollout", done, len(chunks))
                part_plan = plan.select(index)
                trajectory = self._roll(batch, index, part_plan, (1, -1)[twin] if twins else 0, step, group)
                self.on_phase("reward", done, len(chunks))
                scores = self.score(trajectory.final, index, self._wants_gradient())
                parts.append(Rollout(index, twin, trajectory, scores, part_plan, group))
        rewards = self._gather(parts, 2 if twins else 1, batch.size, lambda scores: scores.reward)
        has_surrogate = parts and parts[0].scores.surrogate is not None
        surrogates = None
        if has_surrogate:
            surrogates = self._gather(parts, len(rewards), batch.size, lambda scores: scores.surrogate)
        return Rollouts(parts, rewards, surrogates, step)

    def _plan(self, step: int, groups: np.ndarray) -> Plan:
        rng = np.random.default_rng([self.seed, step + 1, 1])
        pathwise = self.pathwise and self.method.pathwise != "no"
        return self.method.plan(
            Setting(self.sigmas, len(groups), groups, self.options, self.running, rng, pathwise)
        )

    def _wants_gradient(self) -> bool:
        return self.pathwise and self.method.pathwise != "no"

    def _chunks(self, groups: np.ndarray) -> Iterator[Tensor]:
        """This process's places in the batch, in micro-batches that share a perturbation."""
        own = np.asarray(self.world.slice(len(groups)))
        for group in np.unique(groups[own]):
            members = own[groups[own] == group]
            for start in range(0, len(members), self.micro_batch):
                yield torch.from_numpy(members[start : start + self.micro_batch].copy())

    def _roll(self, batch: Batch, index: Tensor, plan: Plan, sign: int, step: int, group: int) -> Trajectory:
        noise, conditioning = batch.noise(index), batch.conditioning.select(index)
        if not sign:
            return rollout(self.chain, noise, conditioning)
        perturbation = self._perturbation(step, group)
        perturbed = plan.perturbed[:, 0]
        active = 0

        def before_step(t: int) -> None:
            nonlocal active
            wanted = sign if perturbed[t] else 0
            if wanted != active:
                perturbation.switch(wanted)
                active = wanted

        try:
            return rollout(self.chain, noise, conditioning, before_step=before_step)
        finally:
            perturbation.switch(0)

    def _perturbation(self, step: int, group: int) -> Perturbation:
        seed = int(np.random.SeedSequence([self.seed, step + 1, 2, group]).generate_state(1)[0])
        return Perturbation(self.parameters, seed, self.options.perturbation)

    def _gather(
        self, parts: list[Rollout], twins: int, batch: int, value: Callable[[Scores], Tensor]
    ) -> Tensor:
        found = torch.zeros(twins, batch, dtype=torch.float64)
        for part in parts:
            found[part.twin, part.index] = value(part.scores).detach().double().cpu()
        return self.world.sum(found)

    # --- the gradient ---

    def calibrate(self, rollouts: Rollouts, batch: Batch) -> None:
        """Set the mixture and the depths from a walk whose gradient is thrown away (math.md section 3).

        All trajectories take a step before any takes the next: lam is set from the batch's variances in
        order, because the variance of a pathwise cotangent is that of the mixtures before it.
        """
        self._update_coefficient(rollouts)
        statistics = Statistics(self.chain.T)
        signals = [Signals(s.advantage, s.pathwise) for s in self._signals(rollouts, batch)]
        for t in range(1, self.chain.T + 1):
            lam = self._calibrated_lam(t, rollouts, signals)
            for part, signal in zip(rollouts.parts, signals, strict=True):
                plan = Plan.everywhere(self.chain.T, len(part.index), lam).without_hidden_noise(self.sigmas)
                result = walk(
                    self.chain, part.trajectory, self.parameters, plan, signal,
                    observer=statistics, steps=range(t, t + 1),
                )  # fmt: skip
                signal.pathwise = result.pathwise
        self.running.update(statistics.totals(self.world.sum))

    def _calibrated_lam(self, t: int, rollouts: Rollouts, signals: list[Signals]) -> float:
        """The share of the pathwise cotangent at step t that this batch's own variances ask for."""
        if not self._wants_gradient() or self.sigmas[t - 1] <= 0:
            return 0.0
        observed = Statistics(self.chain.T)
        for part, signal in zip(rollouts.parts, signals, strict=True):
            score = part.trajectory.noises[t] / self.sigmas[t - 1]
            advantage = signal.advantage.view(-1, *[1] * (score.ndim - 1))
            observed.cotangents(t, signal.pathwise, advantage * score)
        found = observed.totals(self.world.sum)
        return mixing_share(found["pathwise"][t], found["ratio"][t])

    def estimate(self, rollouts: Rollouts, batch: Batch, *, replay: bool = False) -> Estimate:
        """The update's gradient. replay: an inner epoch of ddpo, the parameters have moved since."""
        statistics = Statistics(self.chain.T)
        proximity = Proximity(
            self.base, self.options.kl_weight, min((s for s in self.sigmas if s > 0), default=1.0),
            self.options.clip_range if self.method.name == "ddpo" else None,
        )  # fmt: skip
        totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        twins, size = rollouts.rewards.shape
        kl = ratio_error = clipped = torch.zeros(())
        signals = self._signals(rollouts, batch)
        for done, (part, signal) in enumerate(zip(rollouts.parts, signals, strict=True)):
            self.on_phase("walk", done, len(rollouts.parts))
            if not part.plan.visited.any():
                continue
            result: WalkResult = walk(
                self.chain, part.trajectory, self.parameters, part.plan, signal,
                proximity=proximity, observer=None if replay else statistics,
            )  # fmt: skip
            torch._foreach_add_(totals, result.gradient, alpha=1 / (twins * size))
            kl = kl + result.kl.cpu() / (twins * size)
            ratio_error = torch.maximum(ratio_error, result.ratio_error.cpu())
            clipped = clipped + result.clipped.cpu()
        if twins == 2:
            self._add_zeroth_order(rollouts, totals, size)
        self.world.sum_all(totals)
        if not replay:
            self._remember(rollouts, statistics)
        return Estimate(
            totals,
            float(self.world.sum(kl)) if self.options.kl_weight > 0 else float("nan"),
            float(ratio_error),
            float(self.world.sum(clipped)),
        )

    @torch.no_grad()
    def measure_kl(self, rollouts: Rollouts, samples: int = 2) -> float:
        """Mean KL to the base of a few trajectories, summed over their noisy steps; NaN where none has noise.

        A cheap figure for those who do not train with it: what was drawn tells the mean that it was drawn
        around, so only the base model is asked. Perturbed steps (zeroth order) are what the twins drew.
        """
        total, count = torch.zeros(()), torch.zeros(())
        for part in rollouts.parts[:1]:
            trajectory = part.trajectory
            index = torch.arange(min(samples, len(part.index)))
            conditioning = trajectory.conditioning.select(index)
            count += len(index)
            for t, z in trajectory.noises.items():
                sigma = self.sigmas[t - 1]
                mean = trajectory.latents[t - 1][: len(index)] - sigma * z[: len(index)]
                with self.base():
                    base = self.chain.mean(trajectory.latents[t][: len(index)], t, conditioning)
                total += ((mean - base).square().sum() / (2 * sigma**2)).cpu()
        if not any(self.sigmas):
            return float("nan")
        total, count = self.world.sum(torch.stack([total, count]))
        return float(total / count)

    def _signals(self, rollouts: Rollouts, batch: Batch) -> list[Signals]:
        """Each part's advantages and pathwise start."""
        kind = self.options.advantage
        surrogates = None if rollouts.surrogates is None else self.coefficient * rollouts.surrogates
        whole = advantages(rollouts.rewards, batch.groups, kind, self.mean_reward)
        first, residual = whole, None
        if surrogates is not None:
            # what is subtracted from R must be scaled as R is; its own baseline takes out the rest
            first = advantages(surrogates, batch.groups, "leave_one_out")._replace(scale=whole.scale)
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

    def _add_zeroth_order(self, rollouts: Rollouts, totals: list[Tensor], size: int) -> None:
        own: dict[int, list[int]] = {}
        for part in rollouts.parts:
            if part.twin == 0:
                own.setdefault(part.group, []).extend(part.index.tolist())
        for group, members in own.items():
            plus, minus = rollouts.rewards[:, members] / size
            self._perturbation(rollouts.step, group).add_gradient(totals, plus, minus)

    def _remember(self, rollouts: Rollouts, statistics: Statistics) -> None:
        """Take this update into the running means, after its plan and mixture were used."""
        self.running.update(statistics.totals(self.world.sum))
        mean = float(rollouts.rewards.mean())
        self.mean_reward = mean if self.mean_reward is None else 0.9 * self.mean_reward + 0.1 * mean
        self._update_coefficient(rollouts)

    def _update_coefficient(self, rollouts: Rollouts) -> None:
        if rollouts.surrogates is None:
            return
        surrogate, reward = rollouts.surrogates.flatten(), rollouts.rewards.flatten()
        centered = surrogate - surrogate.mean()
        slope = float(centered @ (reward - reward.mean()) / centered.square().sum().clamp(min=1e-12))
        self.coefficient = slope if self.coefficient == 0.0 else 0.8 * self.coefficient + 0.2 * slope

    def state_dict(self) -> dict[str, Tensor]:
        """What is averaged over updates, float64."""
        mean = float("nan") if self.mean_reward is None else self.mean_reward
        return {**self.running.state_dict(), "scalars": torch.tensor([mean, self.coefficient]).double()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        state = dict(state)
        mean, self.coefficient = state.pop("scalars").tolist()
        self.mean_reward = None if np.isnan(mean) else mean
        self.running.load_state_dict(state)
