"""RLR Combine Rewards."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io

from rlr_core.errors import UserError

from . import sockets
from .defaults import AUTO
from .schema import CATEGORY, Node, RlrReward, rare

MOST_PARTS = 16


class CombineRewards(Node):
    """Several rewards as one."""

    PARTS = 4

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs: list[io.Input] = [
            io.Combo.Input(
                "mode", options=["sum", "minimum", "product"], default="sum",
                tooltip="sum: the weighted sum. minimum: the worst part counts. product: the geometric mean.",
            ),
            rare(
                io.Boolean.Input, "normalize", default=True,
                tooltip="Bring every reward to mean 0 and deviation 1 first: none outweighs the others.",
            ),
            rare(
                io.Boolean.Input, "within_prompts", default=False,
                tooltip="With normalize: divide by how much pictures of one prompt differ (GDPO), which is "
                "what is learned from. Takes two pictures or more of a prompt.",
            ),
        ]  # fmt: skip
        for number in range(1, cls.PARTS + 1):
            inputs.append(
                RlrReward.Input(
                    f"reward_{number}",
                    optional=number > 1,
                    tooltip="A reward, or another RLR Combine Rewards of the same mode, whose parts are "
                    "taken over (for more than four).",
                )  # fmt: skip
            )
            inputs.append(
                io.Float.Input(
                    f"weight_{number}",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    tooltip=f"Weight of reward {number}; a negative one reverses it.",
                )  # fmt: skip
            )
        for number in range(1, cls.PARTS + 1):
            inputs.append(
                rare(
                    io.String.Input,
                    f"cap_{number}",
                    default="",
                    tooltip=f"A score of reward {number} above this number counts as it: there is nothing to "
                    "gain beyond. Empty: no cap.",
                )
            )
        return io.Schema(
            node_id="RLR_CombineRewards",
            display_name="RLR Combine Rewards",
            category=CATEGORY,
            description="Several rewards as one: their weighted sum, minimum or product.",
            inputs=inputs,
            outputs=[RlrReward.Output(display_name="reward", tooltip="All of them as one reward.")],
        )

    @classmethod
    def run(cls, mode: str, normalize: bool, within_prompts: bool, **inputs: Any) -> io.NodeOutput:
        parts: list[dict[str, Any]] = []
        weights: list[float] = []
        caps: list[float | None] = []
        manner = {"mode": mode, "normalize": normalize, "within_prompts": within_prompts}
        people: list[sockets.Person] = []
        for number in range(1, cls.PARTS + 1):
            reward, weight = inputs[f"reward_{number}"], inputs[f"weight_{number}"]
            if reward is None:
                continue
            if reward.name == AUTO:
                raise UserError(f"reward_{number} is an RLR Reward at auto: choose what it looks at.")
            people += [reward.person] if reward.person is not None else []
            cap = cap_from(inputs[f"cap_{number}"], number)
            if reward.name == "combine":
                if {name: reward.options[name] for name in manner} != manner:
                    raise UserError(
                        "Only combined rewards of the same mode, normalize and within_prompts can be "
                        "combined again."
                    )
                if cap is not None:
                    raise UserError(f"reward_{number} is combined itself: set the caps of its parts there.")
                parts += reward.options["rewards"]
                weights += [weight * inner for inner in reward.options["weights"]]
                caps += reward.options["caps"]
            else:
                parts.append({reward.name: dict(reward.options)})
                weights.append(weight)
                caps.append(cap)
        if len(parts) > MOST_PARTS:
            raise UserError(f"{len(parts)} rewards are too many; combine at most {MOST_PARTS}.")
        if len(people) > 1:
            raise UserError("One RLR Rate is enough: several would ask about the same pictures.")
        options = {"rewards": parts, **manner, "weights": weights, "caps": caps}
        return io.NodeOutput(sockets.Reward("combine", options, people[0] if people else None))


def cap_from(text: str, number: int) -> float | None:
    """The number in a cap's widget; None where it is empty. Raises UserError."""
    if not text.strip():
        return None
    try:
        cap = float(text)
    except ValueError:
        cap = math.nan
    if not math.isfinite(cap):
        raise UserError(f"cap_{number} is {text[:40]!r}: write a number such as 0.8, or leave it empty.")
    return cap
