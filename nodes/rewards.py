"""RLR Reward and RLR Combine Rewards."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from rlr_core.errors import UserError
from rlr_core.rewards import REWARDS, reward_class

from . import host, images, sockets
from .schema import CATEGORY, Node, RlrReward, opt, rare

AUTO = "auto"
CHOICES = [
    "demo", "judge", "aesthetic", "clip_score", "pickscore", "hpsv2", "image_reward", "vqascore",
    "jpeg_compressibility", "jpeg_incompressibility", "mean_color", "brightness", "saturation", "contrast",
    "sharpness", "total_variation", "target_color", "target_picture",
]  # fmt: skip
"""Rewards for pictures that a widget can describe."""
SECOND_FILE = ("clip", "vocabulary", "tokenizer", "features")
"""Names of the options that `second_file` fills, whichever the reward has."""
WIDGETS = ("color", "channel", "quality")
"""Widgets that fill the option of their name, where the reward has it."""
CHANNELS = ["red", "green", "blue"]
MOST_PARTS = 16


class RewardNode(Node):
    """A reward, its files and its options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        summaries = "; ".join(f"{name}: {REWARDS[name].summary}" for name in CHOICES)
        files = [AUTO, *host.reward_files()]
        return io.Schema(
            node_id="RLR_Reward",
            display_name="RLR Reward",
            category=CATEGORY,
            description="Scores pictures; higher is better. A model is trained for it, or only judged by it.",
            inputs=[
                io.Combo.Input("reward", options=CHOICES, default="demo", tooltip=f"{summaries}."),
                io.Combo.Input(
                    "weights", options=files, default=AUTO,
                    tooltip="The reward's weights, from models/reward_models, clip_vision or checkpoints. "
                    "auto finds the file by its usual name. Rewards without weights ignore it.",
                ),
                io.Combo.Input(
                    "second_file", options=files, default=AUTO,
                    tooltip="A second file that some rewards need: aesthetic a CLIP ViT-L/14, image_reward a "
                    "vocabulary, vqascore a tokenizer. target_picture compares features of this CLIP.",
                ),
                rare(io.String.Input, "color", default="#ff8000",
                     tooltip="target_color: a name such as teal, or #rrggbb. Other rewards ignore it."),
                rare(io.Combo.Input, "channel", options=CHANNELS, default="red",
                     tooltip="mean_color: which channel should stand out. Other rewards ignore it."),
                rare(io.Int.Input, "quality", default=95, min=1, max=100,
                     tooltip="jpeg rewards: quality of the JPEG. Other rewards ignore it."),
                rare(io.Boolean.Input, "checkpointing", default=False,
                     tooltip="Gradient checkpointing in the reward's network: less memory, a third slower."),
                io.Image.Input("target", optional=True,
                               tooltip="target_picture: the picture to come close to; of a batch the first."),
            ],
            outputs=[RlrReward.Output(display_name="reward", tooltip="For RLR Train, as reward or as judge; "
                                      "for RLR Score Images and RLR Combine Rewards.")],
            **opt(search_aliases=["aesthetic", "clip score", "preference", "scorer"]),
        )  # fmt: skip

    @classmethod
    def run(cls, reward: str, weights: str, second_file: str, target: Any, **widgets: Any) -> io.NodeOutput:
        takes = inspect.signature(reward_class(reward)).parameters
        options = {name: widgets[name] for name in WIDGETS if name in takes}
        if widgets["checkpointing"] and "checkpointing" in takes:
            options["checkpointing"] = True
        if weights != AUTO and "weights" in takes:
            options["weights"] = host.reward_path(weights)
        if second_file != AUTO:
            for name in SECOND_FILE:
                if name in takes:
                    options[name] = host.reward_path(second_file)
        if "target" in takes:
            if target is None:
                raise UserError("target_picture needs a picture: connect an image to target.")
            options["target"] = str(images.keep_as_file(target[0], host.runs_folder() / "targets"))
        return io.NodeOutput(sockets.Reward(reward, options))


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
