"""Rewards: one file each, listed here by name, loaded on first use.

A new reward is one new file and one line in REWARDS.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, NamedTuple

from rlr_core.errors import UserError, nearest


class Entry(NamedTuple):
    """Where a reward lives and what it is, so that listing imports nothing."""

    target: str  # "module:Class"
    summary: str


REWARDS: dict[str, Entry] = {
    "demo": Entry("rlr_core.demo.reward:DemoReward", "the built-in model's reward: picture matches prompt"),
    "judge": Entry("rlr_core.demo.judge:DemoJudge", "the built-in model's judge: reads shapes from pixels"),
    "aesthetic": Entry("rlr_core.rewards.aesthetic:Aesthetic", "LAION aesthetic v2: how much people like it"),
    "clip_score": Entry("rlr_core.rewards.clip_similarity:ClipScore", "picture fits prompt, by any CLIP"),
    "pickscore": Entry("rlr_core.rewards.clip_similarity:PickScore", "what people pick for a prompt"),
    "hpsv2": Entry("rlr_core.rewards.clip_similarity:HPSv2", "human preference score 2.0 or 2.1"),
    "image_reward": Entry("rlr_core.rewards.image_reward:ImageReward", "human preference, BLIP reads both"),
    "vqascore": Entry("rlr_core.rewards.vqascore:VQAScore", "CLIP-FlanT5 says the picture shows the prompt"),
    "jpeg_compressibility": Entry(
        "rlr_core.rewards.jpeg:Compressibility", "small as a JPEG: minus kilobytes"
    ),
    "jpeg_incompressibility": Entry("rlr_core.rewards.jpeg:Incompressibility", "large as a JPEG: kilobytes"),
    "mean_colour": Entry("rlr_core.rewards.pixels:MeanColour", "more red, green or blue than the rest"),
    "brightness": Entry("rlr_core.rewards.pixels:Brightness", "mean luminance"),
    "saturation": Entry("rlr_core.rewards.pixels:Saturation", "how far from grey"),
    "contrast": Entry("rlr_core.rewards.pixels:Contrast", "spread of the luminance"),
    "sharpness": Entry("rlr_core.rewards.pixels:Sharpness", "strength of fine detail (Laplacian)"),
    "total_variation": Entry(
        "rlr_core.rewards.pixels:TotalVariation", "smoothness: minus neighbours' differences"
    ),
    "target_colour": Entry("rlr_core.rewards.target:TargetColour", "close to one colour everywhere"),
    "target_picture": Entry(
        "rlr_core.rewards.target:TargetPicture", "close to a picture, in pixels or features"
    ),
    "temporal_flicker": Entry(
        "rlr_core.rewards.video:TemporalFlicker", "video: no flicker from frame to frame"
    ),
    "motion": Entry("rlr_core.rewards.video:Motion", "video: speed in pixels a frame"),
    "clip_consistency": Entry("rlr_core.rewards.video:ClipConsistency", "video: frames alike in CLIP's eyes"),
    "video": Entry("rlr_core.rewards.video:OnFrames", "any picture reward on sampled frames of a video"),
    "combine": Entry("rlr_core.rewards.combine:Combine", "several rewards: sum, minimum or product"),
    "ratings": Entry("rlr_core.rewards.ratings:Ratings", "a person's clicks, through a folder or a callback"),
    "scores": Entry("rlr_core.rewards.ratings:Scores", "numbers handed in from outside, a batch at a time"),
}


def load_reward(reward: Any, /, **options: Any):
    """A reward by name, or any callable (images [B,3,H,W] in [0,1], prompts) -> [B] as a reward.

    Options are those of the reward's constructor. May be called in inference mode (as in ComfyUI): weights
    are loaded outside it, so that gradients pass through them later.
    Raises UserError for an unknown name, unknown options, or a file that is missing or wrong.
    """
    import torch

    from rlr_core.rewards.base import CallableReward, Reward

    if isinstance(reward, Reward):
        return reward
    if callable(reward):
        return CallableReward(reward, **options)
    factory = reward_class(reward)
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "none"
        raise UserError(f"Reward {reward!r}: {error}; its options: {takes}.") from error
    with torch.inference_mode(False):
        loaded = factory(**options)
    loaded.source = (reward, options)
    return loaded


def reward_class(name: str) -> type:
    """The class of a reward by its name. Raises UserError for an unknown one."""
    if name not in REWARDS:
        raise UserError(
            f"Unknown reward {name!r}; known: {', '.join(REWARDS)}.{nearest(str(name), list(REWARDS))}"
        )
    module, attribute = REWARDS[name].target.split(":")
    return getattr(importlib.import_module(module), attribute)
