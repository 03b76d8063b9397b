"""A judge and the reward itself on held-out prompts and seeds that never change.

Train on one reward, evaluate by another: a judge that falls while the reward rises is reward hacking seen
early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from rlr_core.common.distributed import World
from rlr_core.config import EvaluationConfig
from rlr_core.diffusion.chain import Chain, EvaluationCounts
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.errors import UserError
from rlr_core.evaluation import measures
from rlr_core.evaluation.measures import Evaluation
from rlr_core.rewards.base import Reward


class HeldOut:
    """Evaluates at will; remembers the first evaluation, the latest, and the best with its adapter."""

    def __init__(
        self,
        chain: Chain,
        reward: Reward,
        judge: Reward | None,
        book: PromptBook,
        prompts: Sequence[int],
        settings: EvaluationConfig,
        *,
        seed: int,
        latent_shape: Sequence[int],
        keep: int,
        world: World,
        averaged: Callable[[], AbstractContextManager],
        adapter_state: Callable[[], dict[str, Tensor]],
    ):
        """prompts: numbers in the book; keep: pictures to hold on to; averaged: context in which the adapter
        is as it will be saved; adapter_state: copies of its weights."""
        self.chain, self.reward, self.judge, self.book = chain, reward, judge, book
        named = {"reward": reward, "judge": judge}
        stand_ins = {name: _evaluable(r) for name, r in named.items() if r is not None}
        self.rewards = {name: r for name, r in stand_ins.items() if r is not None}
        if self.judged_by not in self.rewards:
            raise UserError(
                f"Reward {reward.name!r} cannot be asked about held-out pictures: name a judge that "
                f"can, with evaluation.judge."
            )
        self.settings, self.latent_shape, self.keep, self.world = settings, latent_shape, keep, world
        self.averaged, self.adapter_state = averaged, adapter_state
        index, self.seeds = measures.plan(len(prompts), settings.samples, seed)
        self.chosen = [prompts[i] for i in index]
        self.before: Evaluation | None = None
        self.latest: Evaluation | None = None
        self.best: tuple[Evaluation, dict[str, Tensor]] | None = None
        self.dropped = False
        """Whether the latest judge is significantly below the best, where that is to stop the run."""

    @property
    def judged_by(self) -> str:
        """Which scores are the judge's: the reward's own where there is no judge."""
        return "judge" if self.judge is not None else "reward"

    def evaluate(self, on_progress: Callable[[int, int], None] | None = None) -> Evaluation:
        """Evaluate the adapter as it would be saved now."""
        state, counts = self.reward.state_dict(), self.chain.evaluations
        self.chain.evaluations = EvaluationCounts()  # what evaluations cost is not the training's
        with self.averaged():
            evaluation = measures.evaluate(
                self.chain, self.rewards, self.book.texts(self.chosen), self.seeds,
                lambda places: self.book.conditioning([self.chosen[i] for i in places]), self.latent_shape,
                batch=self.settings.batch, device=self.book.device, keep=self.keep,
                on_progress=on_progress, world=self.world,
            )  # fmt: skip
        self.reward.load_state_dict(state)  # an evaluation must not move a reward's running means
        self.chain.evaluations = counts
        self._take_in(evaluation)
        return evaluation

    def _take_in(self, evaluation: Evaluation) -> None:
        """Remember it, and whether its judge is significantly below the best, if that is to stop the run."""
        self.before = self.before or evaluation
        self.latest = evaluation
        self.dropped = False
        if not self.settings.stop_when_judge_drops:
            return
        gain = measures.difference(self.best[0], evaluation, self.judged_by) if self.best else None
        if gain is None or gain.mean > 0:
            with self.averaged():
                self.best = (evaluation, self.adapter_state())
        else:
            self.dropped = gain.high is not None and gain.high < 0

    def row(self, evaluation: Evaluation) -> dict[str, Any]:
        """An evaluation as entries of metrics.jsonl."""
        judged = evaluation.estimate(self.judged_by)
        row = {"judge/mean": judged.mean, "judge/low": judged.low, "judge/high": judged.high}
        if "reward" in evaluation.scores:
            held_out = evaluation.estimate("reward")
            row |= {
                "reward/held_out": held_out.mean,
                "reward/held_out_low": held_out.low,
                "reward/held_out_high": held_out.high,
            }
        distance = None if self.before is None else measures.distance(self.before, evaluation)
        return row | {"distance": distance, "diversity": evaluation.diversity}

    def to_state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Groups of tensors and JSON values that `from_state` takes back."""
        groups, values = {}, {}
        kept = {"before": self.before, "latest": self.latest, "best": self.best and self.best[0]}
        for name, evaluation in kept.items():
            if evaluation is not None:
                groups[name], values[name] = evaluation.to_state()
        if self.best is not None:
            groups["best_adapter"] = self.best[1]
        return groups, values

    def from_state(self, groups: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        kept = {name: Evaluation.from_state(groups[name], values[name])
                for name in ("before", "latest", "best") if name in values}  # fmt: skip
        self.before, self.latest = kept.get("before"), kept.get("latest")
        if "best" in kept:
            self.best = (kept["best"], groups["best_adapter"])


def _evaluable(reward: Reward) -> Reward | None:
    """The reward, or what stands in for one that cannot be asked about held-out pictures."""
    return reward if reward.evaluable else reward.surrogate
