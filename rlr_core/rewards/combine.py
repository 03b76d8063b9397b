"""Several rewards as one: their weighted sum, minimum or product, each brought to a common scale first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.files import select
from rlr_core.rewards.running_moments import Running
from rlr_core.rewards.wrapper import Wrapper

MODES = ("sum", "minimum", "product")


class Combine(Wrapper):
    """sum: sum of weight * z; minimum: smallest weight * z; product: exp(sum of weight * z / number).

    z is a part's score minus its running mean over its running standard deviation, both of earlier updates,
    so that no part drowns the others; for that reason the sum's own curve says little, the parts' curves do.
    With within_prompts the deviation is that between pictures of one prompt, which is what an advantage is
    made of (GDPO, with earlier updates in the place of the present one).
    The product is the geometric mean of exp(z)^weight: positive whatever the parts' signs, and large only
    where no part is small. Without normalization z is the score itself, and the product is the plain product
    of score^weight, for scores that are positive.
    """

    name = "combine"
    takes = "any"
    surrogate: Combine | None

    def __init__(
        self,
        rewards: Mapping[str, float] | Sequence[Any],
        mode: str = "sum",
        normalize: bool = True,
        weights: Sequence[float] | None = None,
        within_prompts: bool = False,
        caps: Sequence[float | None] | None = None,
    ):
        """rewards: {name: weight}, or a list of names, callables, Rewards and {name: {option: value}}.

        weights: one number a reward, default 1 each; a negative one turns a reward round. within_prompts:
        normalize by how much pictures of one prompt differ; takes more than one picture a prompt. caps: one
        a reward, none for no cap; a score above it counts as the cap, so that there is nothing to gain there.
        Raises UserError for an unknown mode, no rewards, or as many weights or caps as do not fit.
        """
        if mode not in MODES:
            raise UserError(f"Reward 'combine': mode must be one of {', '.join(MODES)}, not {mode!r}.")
        if isinstance(rewards, Mapping):
            if weights is not None:
                raise UserError("Reward 'combine': give weights in the mapping or as a list, not both.")
            rewards, weights = list(rewards), list(rewards.values())
        weights = [1.0] * len(rewards) if weights is None else list(weights)
        if not rewards or len(weights) != len(rewards):
            raise UserError(f"Reward 'combine' got {len(rewards)} rewards and {len(weights)} weights.")
        caps = [None] * len(rewards) if caps is None else list(caps)
        if len(caps) != len(rewards):
            raise UserError(f"Reward 'combine' got {len(rewards)} rewards and {len(caps)} caps.")
        super().__init__(load_reward(reward) for reward in rewards)
        self.weights = dict(zip(self.rewards, map(float, weights), strict=True))
        self.caps = dict(zip(self.rewards, caps, strict=True))
        self.mode, self.normalize, self.within_prompts = mode, normalize, within_prompts
        self.running = {
            name: Running(reward.range, within_prompts=within_prompts)
            for name, reward in self.rewards.items()
        }
        self._parts: dict[str, Tensor] = {}
        self.surrogate = None if self.differentiable else self.make_surrogate()

    def make_surrogate(self) -> Combine | None:
        """The same combination with each black box replaced by its surrogate, or left out if it has none."""
        stand_ins = self.stand_ins()
        if not stand_ins:
            return None
        weights, caps = ([of[name] for name in stand_ins] for of in (self.weights, self.caps))
        rewards = list(stand_ins.values())
        return Combine(rewards, self.mode, self.normalize, weights, self.within_prompts, caps)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = {name: reward(images, prompts) for name, reward in self.rewards.items()}
        self._parts = {name: value.detach() for name, value in scores.items()} | super().parts()
        scores = {name: self._capped(name, value) for name, value in scores.items()}
        for name, value in scores.items():
            self.running[name].observe(value, prompts)
        terms = [self._term(name, value) for name, value in scores.items()]
        stacked = torch.stack([term.to(terms[0].device) for term in terms])
        if self.mode == "sum":
            return stacked.sum(0)
        if self.mode == "minimum":
            return stacked.amin(0)
        return (stacked.mean(0) if self.normalize else stacked.sum(0)).exp()

    def _capped(self, name: str, scores: Tensor) -> Tensor:
        """Scores up to the reward's cap; above it they are the cap, without a gradient."""
        cap = self.caps[name]
        return scores if cap is None else scores.clamp(max=cap)

    def _term(self, name: str, scores: Tensor) -> Tensor:
        """What one part brings to the sum, the minimum, or the exponent of the product."""
        weight = self.weights[name]
        if self.normalize:
            return weight * self.running[name].standardize(scores)
        if self.mode != "product":
            return weight * scores
        if (scores <= 0).any():
            raise UserError(
                f"Reward 'combine': a plain product needs positive scores and {name!r} gave "
                f"{scores.min().item():.3g}; leave normalize on, or use mode sum or minimum."
            )
        return weight * scores.log()

    def parts(self) -> dict[str, Tensor]:
        return dict(self._parts)

    def begin_update(self) -> None:
        super().begin_update()
        for running in self._all_running():
            running.forget()

    def after_update(self) -> None:
        super().after_update()
        for running in self._all_running():
            running.commit()

    def _all_running(self) -> list[Running]:
        """Of the parts and of the surrogate, whose rewards are these or theirs and have their turn there."""
        surrogate = [] if self.surrogate is None else self.surrogate.running.values()
        return [*self.running.values(), *surrogate]

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"running.{name}": running.state() for name, running in self.running.items()}
        if self.surrogate is not None:
            for name, running in self.surrogate.running.items():
                state[f"surrogate.{name}"] = running.state()
        return state | super().state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in select(state, "running.").items():
            self.running[name].restore(value)
        if self.surrogate is not None:
            for name, value in select(state, "surrogate.").items():
                self.surrogate.running[name].restore(value)
        super().load_state_dict(state)
