"""Rewards: one file each, listed here by name, loaded on first use.

A new reward is one new file and one entry in REWARDS.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlr_core.errors import UserError, nearest


class Entry(NamedTuple):
    """Where a reward lives and what it is, so that listing imports nothing."""

    target: str  # "module:Class"
    summary: str


REWARDS: dict[str, Entry] = {
    "demo": Entry("rlr_core.demo.reward:DemoReward", "the built-in model's reward: picture matches prompt"),
    "judge": Entry(
        "rlr_core.demo.judge:DemoJudge", "the built-in model's judge: finds the prompt's shapes in the pixels"
    ),
    "aesthetic": Entry("rlr_core.rewards.aesthetic:Aesthetic", "LAION aesthetic v2: how much people like it"),
    "clip_score": Entry("rlr_core.rewards.clip_similarity:ClipScore", "picture matches prompt, by any CLIP"),
    "pickscore": Entry(
        "rlr_core.rewards.clip_similarity:PickScore", "which picture people pick for a prompt"
    ),
    "hpsv2": Entry("rlr_core.rewards.clip_similarity:HPSv2", "human preference score 2.0 or 2.1"),
    "image_reward": Entry(
        "rlr_core.rewards.image_reward:ImageReward",
        "human preference, by a BLIP that reads picture and prompt",
    ),
    "vqascore": Entry(
        "rlr_core.rewards.vqascore:VQAScore", "CLIP-FlanT5 answers yes: the picture shows the prompt"
    ),
    "vlm": Entry(
        "rlr_core.rewards.vlm:Vlm", "a vision-language model says yes to questions about the picture"
    ),
    "http": Entry("rlr_core.rewards.http:Http", "what a server of your own says (OpenAI's chat completions)"),
    "text_in_image": Entry(
        "rlr_core.rewards.text_in_image:TextInImage", "the words that the prompt quotes can be read (OCR)"
    ),
    "safe": Entry("rlr_core.rewards.safe:Safe", "nothing naked, as far as NudeNet sees: a judge or a guard"),
    "jpeg_compressibility": Entry(
        "rlr_core.rewards.jpeg:Compressibility", "small as a JPEG: minus the file size in kilobytes"
    ),
    "jpeg_incompressibility": Entry(
        "rlr_core.rewards.jpeg:Incompressibility", "large as a JPEG: the file size in kilobytes"
    ),
    "mean_color": Entry("rlr_core.rewards.pixels:MeanColor", "more red, green or blue than the other two"),
    "brightness": Entry("rlr_core.rewards.pixels:Brightness", "mean luminance"),
    "saturation": Entry("rlr_core.rewards.pixels:Saturation", "how far from gray"),
    "contrast": Entry("rlr_core.rewards.pixels:Contrast", "standard deviation of the luminance"),
    "sharpness": Entry("rlr_core.rewards.pixels:Sharpness", "strength of fine detail (Laplacian)"),
    "total_variation": Entry(
        "rlr_core.rewards.pixels:TotalVariation", "smoothness: minus the differences of neighboring pixels"
    ),
    "target_color": Entry("rlr_core.rewards.target:TargetColor", "close to one color everywhere"),
    "target_picture": Entry(
        "rlr_core.rewards.target:TargetPicture", "close to a picture, in pixels or features"
    ),
    "temporal_flicker": Entry(
        "rlr_core.rewards.video:TemporalFlicker", "video: no flicker from frame to frame"
    ),
    "motion": Entry("rlr_core.rewards.video:Motion", "video: how fast things move, in pixels per frame"),
    "clip_consistency": Entry(
        "rlr_core.rewards.video:ClipConsistency", "video: neighboring frames are similar, by any CLIP"
    ),
    "video": Entry("rlr_core.rewards.video:OnFrames", "video: any picture reward on some of the frames"),
    "combine": Entry("rlr_core.rewards.combine:Combine", "several rewards: sum, minimum or product"),
    "ratings": Entry(
        "rlr_core.rewards.ratings:Ratings", "a person's ratings, through a folder or a callback"
    ),
    "scores": Entry(
        "rlr_core.rewards.external_scores:ExternalScores",
        "numbers from outside, in the order of the pictures",
    ),
}

ALIASES: dict[str, str] = {
    "mean_colour": "mean_color",
    "target_colour": "target_color",
    "target_color.colour": "color",
    "combine.normalise": "normalize",
}
"""Former names of rewards, and of options as reward.option; accepted with a warning for one version."""


def load_reward(reward: Any, /, **options: Any):
    """What a person names as a reward, as a Reward.

    reward: a name, a name with its options ({name: {option: value}}), a Reward (returned as it is), or a
    callable (images [B, 3, H, W] in [0, 1], prompts) -> [B]. Options are those of the reward's constructor.
    May be called in inference mode (as in ComfyUI): weights are loaded outside it, so that gradients pass
    through them later. Raises UserError for an unknown name, options that do not fit, or a file that is
    missing or wrong.
    """
    import torch

    from rlr_core.rewards.base import CallableReward, Reward
    from rlr_core.rewards.options import check_options

    if isinstance(reward, Mapping):
        reward, options = _with_options(reward, options)
    if isinstance(reward, Reward):
        if options:
            raise UserError(
                f"Reward {reward.name!r} is built already, so it takes no options ({', '.join(options)}); "
                "give them where it is built, or name the reward."
            )
        return reward
    if isinstance(reward, str):
        name = known_name(reward)
        factory, options = reward_class(name), _present_options(name, options)
    elif isinstance(reward, type) and issubclass(reward, Reward):
        name, factory = reward.__name__, reward
    elif callable(reward):
        name = getattr(reward, "__name__", type(reward).__name__)
        factory = functools.partial(CallableReward, reward)
    else:
        raise UserError(f"A reward is a name, {{name: options}} or a callable, not {reward!r:.200}.")
    check_options(f"Reward {name!r}", factory, options)
    with torch.inference_mode(False):
        loaded = factory(**options)
    if isinstance(reward, str):
        loaded.source = (name, options)
    return loaded


def known_name(name: str) -> str:
    """The name in REWARDS that a name stands for: itself, or the present one of a former one, with a warning.

    Raises UserError for an unknown one, with the nearest.
    """
    if name in ALIASES and name not in REWARDS:
        warnings.warn(f"Reward {name!r} is called {ALIASES[name]!r} now.", FutureWarning, stacklevel=3)
        name = ALIASES[name]
    if name not in REWARDS:
        raise UserError(
            f"Unknown reward {name!r}; known: {', '.join(REWARDS)}.{nearest(str(name), list(REWARDS))}"
        )
    return name


def reward_class(name: str) -> type:
    """The class of a reward by its name. Raises UserError for an unknown one."""
    module, attribute = REWARDS[known_name(name)].target.split(":")
    return getattr(importlib.import_module(module), attribute)


def _with_options(reward: Mapping[Any, Any], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Name and options of {name: {option: value}}."""
    if len(reward) != 1:
        raise UserError(
            f"A reward with options is {{name: {{option: value}}}}, one name, not {dict(reward)!r}."
        )
    ((name, own),) = reward.items()
    if not isinstance(own, (Mapping, type(None))):
        raise UserError(f"The options of reward {name!r} are {{option: value}}, not {own!r}.")
    if own and options:
        raise UserError(
            f"Reward {name!r} has options in two places: {', '.join(map(str, own))}; {', '.join(options)}."
        )
    return name, dict(own or options)


def _present_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options by their present names, with a warning for each former one."""
    present: dict[str, Any] = {}
    for option, value in options.items():
        new = ALIASES.get(f"{name}.{option}", option)
        if new != option:
            warnings.warn(
                f"Option {option!r} of reward {name!r} is called {new!r} now.", FutureWarning, stacklevel=3
            )
        if new in present:
            raise UserError(f"Reward {name!r} has its option {new!r} twice, once by its former name.")
        present[new] = value
    return present
