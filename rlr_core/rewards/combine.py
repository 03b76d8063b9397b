"""Several rewards as one: their weighted sum, minimum or product, each brought to a common scale first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import select
from rlr_core.rewards.running_moments import Running

MODES = ("sum", "minimum", "product")


class Combine(Reward):
    """sum: sum of weight * z; minimum: smallest weight * z; product: exp(sum of weight * z / number).

    z is a part's score minus its running mean over its running standard deviation, both of earlier updates,
    so that no part drowns the others; for that reason the sum's own curve says little, the parts' curves do.
    The product is the geometric mean of exp(z)^weight: positive whatever the parts' signs, and large only
    where no part is small. Without normalisation z is the score itself, and the product is the plain product
    of score^weight, for scores that are positive.
    """

    name = "combine"
    takes = "any"

    def __init__(
        self,
        rewards: Mapping[str, float] | Sequence[Any],
        mode: str = "sum",
        normalise: bool = True,
        weights: Sequence[float] | None = None,
    ):
        """rewards: {name: weight}, or a list of names, callables, Rewards and {name: {option: value}}.

        weights: one number a reward, default 1 each; a negative one turns a reward round.
        Raises UserError for an unknown mode, no rewards, or as many weights as do not fit.
        """
        if mode not in MODES:
            raise UserError(f"Reward 'combine': mode must be one of {', '.join(MODES)}, not {mode!r}.")
        if isinstance(rewards, Mapping):
            if weights is not None:
                raise UserError("Reward 'combine': give weights in the mapping or as a list, not both.")
            rewards, weights = list(rewards), list(rewards.values())
        weights = [1.0] * len(rewards) if weights is None else [float(weight) for weight in weights]
        if not rewards or len(weights) != len(rewards):
            raise UserError(f"Reward 'combine' got {len(rewards)} rewards and {len(weights)} weights.")
        self.rewards = _named([_load(reward) for reward in rewards])
        self.weights = weights
        self.mode, self.normalise = mode, normalise
        self.running = {name: Running(reward.range) for name, reward in self.rewards.items()}
        self.differentiable = all(reward.differentiable for reward in self.rewards.values())
        self.whole_batch = any(reward.whole_batch for reward in self.rewards.values())
        self.needs_prompt = any(reward.needs_prompt for reward in self.rewards.values())
        self.files = tuple(file for reward in self.rewards.values() for file in reward.files)
        self._parts: dict[str, Tensor] = {}
        self.surrogate = None if self.differentiable else self._stand_in()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self._parts = {}
        terms = []
        for (name, reward), weight in zip(self.rewards.items(), self.weights, strict=True):
            scores = reward(images, prompts)
            self._parts[name] = scores.detach()
            self._parts.update({f"{name}/{part}": value for part, value in reward.parts().items()})
            self.running[name].see(scores)
            terms.append(self._term(name, scores, weight))
        stacked = torch.stack([term.to(terms[0].device) for term in terms])
        if self.mode == "sum":
            return stacked.sum(0)
        if self.mode == "minimum":
            return stacked.amin(0)
        return (stacked.mean(0) if self.normalise else stacked.sum(0)).exp()

    def _term(self, name: str, scores: Tensor, weight: float) -> Tensor:
        """What one part brings to the sum, the minimum, or the exponent of the product."""
        if self.normalise:
            return weight * self.running[name].standardise(scores)
        if self.mode != "product":
            return weight * scores
        if (scores <= 0).any():
            raise UserError(
                f"Reward 'combine': a plain product needs positive scores and {name!r} gave "
                f"{scores.min().item():.3g}; leave normalise on, or use mode sum or minimum."
            )
        return weight * scores.log()

    def _stand_in(self) -> Combine | None:
        """The same combination with each black box replaced by its surrogate, or left out if it has none."""
        pairs = [
            (reward if reward.differentiable else reward.surrogate, weight)
            for reward, weight in zip(self.rewards.values(), self.weights, strict=True)
        ]
        pairs = [(reward, weight) for reward, weight in pairs if reward is not None]
        if not pairs:
            return None
        rewards, weights = zip(*pairs, strict=True)
        return Combine(list(rewards), self.mode, self.normalise, weights)

    def parts(self) -> dict[str, Tensor]:
        return dict(self._parts)

    def to(self, device: torch.device | str) -> Combine:
        for reward in self._everyone():
            reward.to(device)
        return self

    def prepare(self, prompts: Sequence[str]) -> None:
        for reward in self._everyone():
            reward.prepare(prompts)

    def after_update(self) -> None:
        for reward in self.rewards.values():
            reward.after_update()
        for running in self.running.values():
            running.commit()
        if self.surrogate is not None:  # its parts are ours or our parts', and have had their turn
            for running in self.surrogate.running.values():
                running.commit()

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"running.{name}": running.state() for name, running in self.running.items()}
        if self.surrogate is not None:
            for name, running in self.surrogate.running.items():
                state[f"surrogate.{name}"] = running.state()
        for name, reward in self.rewards.items():
            state.update({f"part.{name}.{key}": value for key, value in reward.state_dict().items()})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in select(state, "running.").items():
            self.running[name].restore(value)
        for name, value in select(state, "surrogate.").items():
            self.surrogate.running[name].restore(value)
        for name, reward in self.rewards.items():
            reward.load_state_dict(select(state, f"part.{name}."))

    def _everyone(self) -> list[Reward]:
        """The parts, and the surrogates of the black boxes among them."""
        rewards = list(self.rewards.values())
        return rewards + [r.surrogate for r in rewards if not r.differentiable and r.surrogate is not None]


def _load(reward: Any) -> Reward:
    """A reward from a name, a callable, a Reward, or {name: options}."""
    if isinstance(reward, Mapping):
        if len(reward) != 1:
            raise UserError(f"Reward 'combine': one name a reward, {{name: options}}, not {dict(reward)!r}.")
        ((name, options),) = reward.items()
        return load_reward(name, **(options or {}))
    return load_reward(reward)


def _named(rewards: Sequence[Reward]) -> dict[str, Reward]:
    """Rewards by name; a name that comes again gets a number."""
    named: dict[str, Reward] = {}
    for reward in rewards:
        name, count = reward.name, 2
        while name in named:
            name, count = f"{reward.name}_{count}", count + 1
        named[name] = reward
    return named
