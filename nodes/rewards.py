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
from rlr_core.rewards.http import INSTRUCTION
from rlr_core.rewards.vlm import QUESTION

from . import host, images, queued, reward_sources, sockets
from .defaults import AUTO
from .schema import CATEGORY, Node, RlrReward, opt

ELSEWHERE = ("temporal_flicker", "motion", "clip_consistency", "video", "combine", "ratings", "scores")
"""Rewards that no widget can describe: parts of a workflow, callbacks, and those of videos."""
CHOICES = [AUTO, *(name for name in REWARDS if name not in ELSEWHERE)]
SECOND_FILE = ("clip", "vocabulary", "tokenizer", "features")
"""Options that `second_file` fills, whichever the reward has."""
FILES = {"weights": ("weights",), "second_file": SECOND_FILE, "model_folder": ("model",)}
"""Input -> the options of which it is the file."""
OF_ONE = {"model_folder": "vlm", "clip": "vlm", "server_model": "http"}
"""Input -> the only reward that reads it."""
CHANNELS = ["red", "green", "blue"]


class Option(NamedTuple):
    """An input that is an option."""

    kind: Callable[..., io.Input]
    shape: dict[str, Any]
    tooltip: str
    option: str = ""
    """'' is the input's own name."""


OPTIONS = {
    "color": Option(io.String.Input, {"default": "#ff8000"}, "A name such as teal, or #rrggbb."),
    "channel": Option(io.Combo.Input, {"options": CHANNELS, "default": "red"}, "Which one should stand out."),
    "question": Option(
        io.String.Input,
        {"default": QUESTION},
        "What the model is asked about the picture, to be answered by yes; {prompt} stands for the prompt.",
    ),
    "address": Option(
        io.String.Input,
        {"default": ""},
        "http: a server that speaks OpenAI's chat completions and sees pictures, such as "
        "http://127.0.0.1:11434/v1. Only one on this machine is asked, unless whoever started ComfyUI has "
        f"allowed its host by the environment variable {reward_sources.HOSTS_VARIABLE}.",
    ),
    "server_model": Option(
        io.String.Input, {"default": "default"}, "http: the model's name on that server.", "model"
    ),
    "instruction": Option(
        io.String.Input,
        {"default": INSTRUCTION},
        "http: what the server is asked, to be answered by a number from 0 to 1; {prompt} stands for the "
        "prompt.",
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
                io.Combo.Input(
                    "model_folder", options=[AUTO, *reward_sources.model_folders()], default=AUTO,
                    tooltip="vlm: a folder of transformers in models/reward_models, such as "
                    "Qwen3-VL-4B-Instruct; not used where clip is connected.",
                ),
                *(option.kind(name, tooltip=option.tooltip, **option.shape)
                  for name, option in OPTIONS.items()),
                io.Boolean.Input(
                    "checkpointing", default=False,
                    tooltip="Gradient checkpointing in the reward's network: less memory, a third slower.",
                ),
                io.Image.Input("target", optional=True,
                               tooltip="target_picture: the picture to come close to; of a batch the first."),
                io.Clip.Input("clip", optional=True,
                              tooltip="vlm: a text encoder with eyes that is loaded anyway, Qwen3-VL such as "
                              "Krea 2's, in the place of a folder."),
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
    def run(
        cls,
        reward: str,
        weights: str,
        second_file: str,
        model_folder: str,
        target: Any,
        clip: Any,
        **widgets: Any,
    ) -> io.NodeOutput:
        if reward == AUTO:
            return io.NodeOutput(sockets.Reward(AUTO))
        options = {OPTIONS[name].option or name: widgets[name] for name in OPTIONS if reads(reward, name)}
        if widgets["checkpointing"] and reads(reward, "checkpointing"):
            options["checkpointing"] = True
        takes = inspect.signature(reward_class(reward)).parameters
        for input_name, file in (
            ("weights", weights),
            ("second_file", second_file),
            ("model_folder", model_folder),
        ):
            if file != AUTO and reads(reward, input_name):
                path = _path(input_name, file)
                options |= {name: path for name in FILES[input_name] if name in takes}
        if reads(reward, "target"):
            if target is None:
                raise UserError("target_picture needs a picture: connect an image to target.")
            options["target"] = str(images.keep_as_file(target[0], host.runs_folder() / "targets"))
        if reads(reward, "clip") and clip is not None:
            from .native.answers import ClipAnswerer

            options["model"] = ClipAnswerer(clip)
        if reads(reward, "address") and (why := reward_sources.refused(widgets["address"])):
            raise UserError(why)
        return io.NodeOutput(sockets.Reward(reward, options))


def reads(reward: str, name: str) -> bool:
    """Whether a reward takes what an input says."""
    if reward == AUTO or OF_ONE.get(name, reward) != reward:
        return False
    options = FILES.get(name) or ("model" if name == "clip" else _option(name),)
    takes = inspect.signature(reward_class(reward)).parameters
    return any(option in takes for option in options)


def inputs_of() -> dict[str, list[str]]:
    """Reward -> the inputs that it reads."""
    names = [*FILES, *OPTIONS, "checkpointing", "target", "clip"]
    return {reward: [name for name in names if reads(reward, name)] for reward in CHOICES}


def _option(name: str) -> str:
    return (OPTIONS[name].option if name in OPTIONS else "") or name


def _path(name: str, file: str) -> str:
    """The path of what is chosen at an input of FILES."""
    return reward_sources.model_folder_path(file) if name == "model_folder" else host.reward_path(file)


def what_is_missing(reward: str, chosen: dict[str, Any]) -> str:
    """What is said of a reward whose packages or files are not there; '' where all are.

    chosen: the node's other inputs.
    """
    if reward == AUTO:
        return ""
    if reads(reward, "address") and isinstance(address := chosen.get("address", ""), str):
        return reward_sources.refused(address)  # one that comes through a link is looked at in the run
    if reads(reward, "clip") and chosen.get("clip") is not None:
        return ""
    kind = reward_class(reward)
    if kind.extra is not None and (packages := kind.extra.missing()):
        return f"{reward} needs packages in ComfyUI's own Python: {packages}."
    needed: tuple[WeightFile, ...] = kind.files
    first: Path | None = None
    for file in needed:
        widget = next((n for n, options in FILES.items() if file.option in options and reads(reward, n)), "")
        own = chosen.get(widget, AUTO)
        try:
            found = locate(file, beside=first) if own == AUTO else Path(_path(widget, str(own)))
        except UserError:
            kind_of_file = "folder" if widget == "model_folder" else "file"
            other = f", or choose another {kind_of_file} at {widget}" if widget else ""
            return (
                f"{reward} needs {file.names[0]} ({file.what}). Get it from {file.source}, put it into "
                f"{folders()[0]} and press R{other}; or choose a reward that needs no file, such as auto."
            )
        first = first or found
    return ""
