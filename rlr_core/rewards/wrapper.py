"""The base of every reward that holds other rewards: what is asked of it, they are asked too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import select


class Wrapper(Reward):
    """Passes on everything but the scoring: devices, prompts, updates, parts, state, and what a reward is.

    A subclass says how its score comes from theirs (`score`), sets `name`, `range` and `takes`, and builds
    its surrogate of theirs (`make_surrogate`). A method that the base class of rewards gains is passed on
    here, and nowhere else.
    """

    def __init__(self, rewards: Iterable[Reward]):
        """rewards: those it holds; one whose name came already gets a number behind it."""
        self.rewards = by_name(rewards)
        held = self.rewards.values()
        self.differentiable = all(reward.differentiable for reward in held)
        self.needs_prompt = any(reward.needs_prompt for reward in held)
        self.whole_batch = any(reward.whole_batch for reward in held)
        self.evaluable = all(reward.evaluable for reward in held)
        self.files = tuple(file for reward in held for file in reward.files)

    def make_surrogate(self) -> Reward | None:
        """This wrapper around `stand_ins`, for one that is a black box; None where there is none."""
        return None

    def stand_ins(self) -> dict[str, Reward]:
        """By name: each differentiable reward, and the surrogate of each black box that has one."""
        pairs = ((name, r if r.differentiable else r.surrogate) for name, r in self.rewards.items())
        return {name: reward for name, reward in pairs if reward is not None}

    def to(self, device: torch.device | str) -> Reward:
        for reward in self._everyone():
            reward.to(device)
        return self

    def prepare(self, prompts: Sequence[str]) -> None:
        for reward in self._everyone():
            reward.prepare(prompts)

    def keep_in(self, folder: Path) -> None:
        for reward in self.rewards.values():
            reward.keep_in(folder)

    def begin_update(self) -> None:
        for reward in self.rewards.values():
            reward.begin_update()

    def after_update(self) -> None:
        for reward in self.rewards.values():
            reward.after_update()

    def parts(self) -> dict[str, Tensor]:
        return {
            f"{name}/{part}": scores
            for name, reward in self.rewards.items()
            for part, scores in reward.parts().items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"part.{name}.{key}": value
            for name, reward in self.rewards.items()
            for key, value in reward.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, reward in self.rewards.items():
            reward.load_state_dict(select(state, f"part.{name}."))

    def _everyone(self) -> list[Reward]:
        """The rewards, and the surrogates of the black boxes among them."""
        rewards = list(self.rewards.values())
        surrogates = [reward.surrogate for reward in rewards if not reward.differentiable]
        return rewards + [surrogate for surrogate in surrogates if surrogate is not None]


def by_name(rewards: Iterable[Reward]) -> dict[str, Reward]:
    """Rewards by their names; a name that came already gets a number: brightness, brightness_2."""
    named: dict[str, Reward] = {}
    for reward in rewards:
        name, count = reward.name, 2
        while name in named:
            name, count = f"{reward.name}_{count}", count + 1
        named[name] = reward
    return named
