"""RLR Rate."""

from __future__ import annotations

from comfy_api.latest import io

from . import sockets
from .schema import CATEGORY, Node, RlrReward, opt


class RateNode(Node):
    """A person as the reward: RLR Train shows its pictures here, and goes on when they are rated."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Rate",
            display_name="RLR Rate",
            category=CATEGORY,
            description="You are the reward: the pictures of a round appear here, you mark the good and the "
            "bad ones and press Next, and the model learns your taste.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=["pictures", "pairs"],
                    default="pictures",
                    tooltip="pictures: all at once; a click is good, a second one bad, a third neither, and "
                    "keys 1 to 5 go from bad to good. pairs: the better of two, by click or arrow key.",
                ),
                io.Int.Input(
                    "updates_per_round",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Updates from one round of pictures to the next. 1 asks every time: use it with "
                    "the method awm and inner_steps 20. With more, all updates but the first follow what was "
                    "learned from your ratings, as long as that predicts them better than luck; else you are "
                    "asked again at once.",
                ),
            ],
            outputs=[RlrReward.Output(display_name="reward", tooltip="Your taste, for RLR Train's reward.")],
            hidden=[io.Hidden.unique_id],
            **opt(search_aliases=["human feedback", "rlhf", "rating", "clicks", "taste", "preference"]),
        )

    @classmethod
    def run(cls, mode: str, updates_per_round: int) -> io.NodeOutput:
        person = sockets.Person(str(cls.hidden.unique_id), mode)
        return io.NodeOutput(sockets.Reward("ratings", {"updates_per_round": updates_per_round}, person))
