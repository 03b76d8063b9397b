"""RLR Reward: a reward, its files and its options; only those of the reward chosen are shown."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from comfy_api.latest import io

from rlr_core.errors import UserError
from rlr_core.rewards import REWARDS, reward_class
from rlr_core.rewards.files import WeightFile, folders, locate
from rlr_core.rewards.vlm import QUESTION

from . import host, images, queued, sockets
from .defaults import AUTO
from .schema import CATEGORY, Node, RlrReward, opt

ELSEWHERE = ("temporal_flicker", "motion", "clip_consistency", "video", "combine", "ratings", "scores")
"""Rewards that no widget can describe: parts of a workflow, callbacks, and those of videos."""
NOT_OF_STRANGERS = ("http",)
"""A workflow may come from a stranger, and is not to say to which address pictures are sent."""
CHOICES = [AUTO, *(name for name in REWARDS if name not in ELSEWHERE + NOT_OF_STRANGERS)]
SECOND_FILE = ("clip", "vocabulary", "tokenizer", "features")
"""Options that `second_file` fills, whichever the reward has."""
FILES = {"weights": ("weights",), "second_file": SECOND_FILE}
"""Input -> the options of which it is the file."""
CHANNELS = ["red", "green", "blue"]


class Option(NamedTuple):
    """An input that is an option of the same name."""

    kind: Callable[..., io.Input]
    shape: dict[str, Any]
    tooltip: str


OPTIONS = {
    "color": Option(io.String.Input, {"default": "#ff8000"}, "A name such as teal, or #rrggbb."),
    "channel": Option(io.Combo.Input, {"options": CHANNELS, "default": "red"}, "Which one should stand out."),
    "question": Option(
        io.String.Input,
        {"default": QUESTION},
        "What the model is asked about the picture, to be answered by yes; {prompt} stands for the prompt.",
    ),
    "quality": Option(io.Int.Input, {"default": 95, "min": 1, "max": 100}, "Quality of the JPEG, 1 to 100."),
}
"""An option that is not here stays at the reward's own default."""


class RewardNode(Node):
    """A reward, its files and its options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        summaries = "; ".join(f"{name}: {REWARDS[name].summary}" for name in CHOICES if name != AUTO)
        files = [AUTO, *host.reward_files()]
        return io.Schema(
            node_id="RLR_Reward",
            display_name="RLR Reward",
            category=CATEGORY,
            description="Scores pictures; higher is better. A model is trained for it, or only judged by it.",
            inputs=[
                io.Combo.Input(
                    "reward", options=CHOICES, default=AUTO,
                    tooltip="What pictures get points for. auto: the built-in model's own reward, or, for "
                    f"other models, saturation, which needs no file. {summaries}.",
                ),
                io.Combo.Input(
                    "weights", options=files, default=AUTO,
                    tooltip="The reward's weights, from models/reward_models, clip_vision or checkpoints. "
                    "auto finds the file by its usual name.",
                ),
                io.Combo.Input(
                    "second_file", options=files, default=AUTO,
                    tooltip="The second file that the reward needs: aesthetic a CLIP ViT-L/14, image_reward "
                    "a vocabulary, vqascore a tokenizer; target_picture compares features of this CLIP.",
                ),
                *(option.kind(name, tooltip=option.tooltip, **option.shape)
                  for name, option in OPTIONS.items()),
                io.Boolean.Input(
                    "checkpointing", default=False,
                    tooltip="Gradient checkpointing in the reward's network: less memory, a third slower.",
                ),
                io.Image.Input("target", optional=True,
                               tooltip="target_picture: the picture to come close to; of a batch the first."),
            ],
            outputs=[RlrReward.Output(display_name="reward", tooltip="For RLR Train, as reward or as judge; "
                                      "for RLR Score Images and RLR Combine Rewards.")],
            hidden=[io.Hidden.unique_id],
            **opt(search_aliases=["aesthetic", "clip score", "preference", "scorer"]),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, reward: str | None = None) -> bool | str:
        """A file that is missing is told when Run is pressed; None comes through a link."""
        if reward is None:
            return True
        if reward not in CHOICES:
            return f"{str(reward)[:100]!r} is not in the list; it has {', '.join(CHOICES)}."
        return what_is_missing(reward, queued.inputs_of(str(cls.hidden.unique_id))) or True

    @classmethod
    def run(cls, reward: str, weights: str, second_file: str, target: Any, **widgets: Any) -> io.NodeOutput:
        if reward == AUTO:
            return io.NodeOutput(sockets.Reward(AUTO))
        takes = inspect.signature(reward_class(reward)).parameters
        options = {name: widgets[name] for name in OPTIONS if name in takes}
        if widgets["checkpointing"] and "checkpointing" in takes:
            options["checkpointing"] = True
        for file, names in ((weights, FILES["weights"]), (second_file, FILES["second_file"])):
            if file != AUTO:
                options |= {name: host.reward_path(file) for name in names if name in takes}
        if "target" in takes:
            if target is None:
                raise UserError("target_picture needs a picture: connect an image to target.")
            options["target"] = str(images.keep_as_file(target[0], host.runs_folder() / "targets"))
        return io.NodeOutput(sockets.Reward(reward, options))


def inputs_of() -> dict[str, list[str]]:
    """Reward -> the inputs that it reads."""
    read: dict[str, list[str]] = {AUTO: []}
    for reward in CHOICES[1:]:
        takes = inspect.signature(reward_class(reward)).parameters
        read[reward] = [name for name, options in FILES.items() if any(option in takes for option in options)]
        read[reward] += [name for name in (*OPTIONS, "checkpointing", "target") if name in takes]
    return read


def what_is_missing(reward: str, chosen: dict[str, Any]) -> str:
    """What is said of a reward whose packages or files are not there; '' where all are.

    chosen: the node's other inputs.
    """
    if reward == AUTO:
        return ""
    kind = reward_class(reward)
    if kind.extra is not None and (packages := kind.extra.missing()):
        return f"{reward} needs packages in ComfyUI's own Python: {packages}."
    needed: tuple[WeightFile, ...] = kind.files
    first: Path | None = None
    for file in needed:
        widget = next((name for name, options in FILES.items() if file.option in options), "")
        own = chosen.get(widget, AUTO)
        try:
            found = locate(file, beside=first) if own == AUTO else Path(host.reward_path(str(own)))
        except UserError:
            other = f", or choose another file at {widget}" if widget else ""
            return (
                f"{reward} needs {file.names[0]} ({file.what}). Get it from {file.source}, put it into "
                f"{folders()[0]} and press R{other}; or choose a reward that needs no file, such as auto."
            )
        first = first or found
    return ""
