"""RLR Combine Rewards."""

from __future__ import annotations

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
        return io.Schema(
            node_id="RLR_CombineRewards",
            display_name="RLR Combine Rewards",
            category=CATEGORY,
            description="Several rewards as one: their weighted sum, minimum or product.",
            inputs=inputs,
            outputs=[RlrReward.Output(display_name="reward", tooltip="All of them as one reward.")],
        )

    @classmethod
    def run(cls, mode: str, normalize: bool, **inputs: Any) -> io.NodeOutput:
        parts: list[dict[str, Any]] = []
        weights: list[float] = []
        people: list[sockets.Person] = []
        for number in range(1, cls.PARTS + 1):
            reward, weight = inputs[f"reward_{number}"], inputs[f"weight_{number}"]
            if reward is None:
                continue
            if reward.name == AUTO:
                raise UserError(f"reward_{number} is an RLR Reward at auto: choose what it looks at.")
            people += [reward.person] if reward.person is not None else []
            if reward.name == "combine":
                if (reward.options["mode"], reward.options["normalize"]) != (mode, normalize):
                    raise UserError(
                        "Only combined rewards of the same mode and normalize can be combined again."
                    )
                parts += reward.options["rewards"]
                weights += [weight * inner for inner in reward.options["weights"]]
            else:
                parts.append({reward.name: dict(reward.options)})
                weights.append(weight)
        if len(parts) > MOST_PARTS:
            raise UserError(f"{len(parts)} rewards are too many; combine at most {MOST_PARTS}.")
        if len(people) > 1:
            raise UserError("One RLR Rate is enough: several would ask about the same pictures.")
        options = {"rewards": parts, "mode": mode, "normalize": normalize, "weights": weights}
        return io.NodeOutput(sockets.Reward("combine", options, people[0] if people else None))
