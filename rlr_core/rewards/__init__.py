"""Rewards: one file each, listed here by name, loaded on first use.

A new reward is one new file and one line in REWARDS.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from rlr_core.errors import UserError, nearest


class Entry(NamedTuple):
    """Where a reward lives and what it is, so that listing imports nothing."""

    target: str  # "module:Class"
    summary: str


REWARDS: dict[str, Entry] = {
    "demo": Entry("rlr_core.demo.reward:DemoReward", "the built-in model's reward: picture matches prompt"),
    "judge": Entry("rlr_core.demo.judge:DemoJudge", "the built-in model's judge: reads shapes from pixels"),
}


def load_reward(reward: Any, **options: Any):
    """A reward by name, or any callable (images [B,3,H,W] in [0,1], prompts) -> [B] as a reward.

    Raises UserError for an unknown name, unknown options, or a file that is missing or wrong.
    """
    from rlr_core.rewards.base import CallableReward, Reward

    if isinstance(reward, Reward):
        return reward
    if callable(reward):
        return CallableReward(reward, **options)
    if reward not in REWARDS:
        raise UserError(
            f"Unknown reward {reward!r}; known: {', '.join(REWARDS)}.{nearest(str(reward), list(REWARDS))}"
        )
    module, name = REWARDS[reward].target.split(":")
    factory = getattr(importlib.import_module(module), name)
    try:
        return factory(**options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise UserError(f"Reward {reward!r}: {str(error).split(') ')[-1]}.") from error
        raise
