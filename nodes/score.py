"""RLR Score Images."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from rlr_core.errors import UserError

from . import host, images, sockets
from .defaults import AUTO
from .prompts import lines
from .schema import CATEGORY, Node, RlrReward, opt, rare

MOST = 4096
SHOWN = 20
"""Pictures in the node, and lines of the report."""


class ScoreImages(Node):
    """Scores pictures of any origin, and sorts them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_ScoreImages",
            display_name="RLR Score Images",
            category=CATEGORY,
            description="Scores every picture of a batch with a reward and sorts them, best first. Works in "
            "any workflow, without training.",
            inputs=[
                io.Image.Input("images", tooltip="Any batch of pictures."),
                RlrReward.Input("reward", tooltip="RLR Reward or RLR Combine Rewards."),
                io.String.Input("prompt", multiline=True, default="", dynamic_prompts=False,
                                tooltip="What the pictures should show: one line for all, or a line for "
                                "each. Rewards that only look at the picture need none."),
                rare(io.Int.Input, "batch", default=4, min=1, max=256, tooltip="Pictures scored at a time."),
            ],
            outputs=[
                io.Float.Output(display_name="scores", is_output_list=True,
                                tooltip="A score for each picture, in the order of the batch."),
                io.Image.Output(display_name="sorted", tooltip="All pictures, best first."),
                io.Image.Output(display_name="best", tooltip="The picture with the highest score."),
                io.String.Output(display_name="report", tooltip="The scores as text."),
            ],
            is_output_node=True,
            **opt(search_aliases=["aesthetic score", "rank images", "best of batch", "pickscore"]),
        )  # fmt: skip

    @classmethod
    def run(cls, images: Any, reward: Any, prompt: str, batch: int) -> io.NodeOutput:
        if not isinstance(reward, sockets.Reward):
            raise UserError("RLR Score Images takes its reward from an RLR node.")
        if reward.name == AUTO:
            raise UserError(
                "RLR Reward is at auto, which is for RLR Train: choose what the pictures are scored by."
            )
        count = len(images)
        if count > MOST:
            raise UserError(f"{count} pictures at once are too many; score at most {MOST}.")
        prompts = lines(prompt) or [""]
        if len(prompts) == 1:
            prompts = prompts * count
        if len(prompts) != count:
            raise UserError(
                f"There are {len(prompts)} prompts for {count} pictures: write one, or one for each."
            )
        scores = scores_of(images, reward, prompts, batch)
        order = torch.argsort(scores, descending=True, stable=True)
        report = _report(reward.name, scores, order)
        shown = {"text": [report], "rlr_scores": _pictures(images, scores, order)}
        return io.NodeOutput(scores.tolist(), images[order], images[order[:1]], report, ui=shown)


def scores_of(pictures: Any, recipe: sockets.Reward, prompts: list[str], batch: int) -> torch.Tensor:
    """Scores [N] of an IMAGE of N pictures."""
    from rlr_core.rewards import load_reward

    scores = []
    with host.whole_device("Lower batch, or score fewer pictures.") as device, torch.no_grad():
        reward = load_reward(recipe.name, **recipe.options).to(device)
        reward.prepare(list(dict.fromkeys(prompts)))
        report = host.Progress(len(prompts)).counting()
        pixels = images.to_engine(pictures)
        for start in range(0, len(prompts), batch):
            report(start, len(prompts))
            part = slice(start, start + batch)
            scores.append(reward(pixels[part].to(device), prompts[part]).cpu())
        report(len(prompts), len(prompts))
    return torch.cat(scores)


def _pictures(pictures: Any, scores: torch.Tensor, order: torch.Tensor) -> list[dict[str, str]]:
    """The best pictures, small, each with its score, for the view in the node."""
    return [
        {"image": images.thumbnail_of(pictures[place]), "text": f"{float(scores[place]):.4g}"}
        for place in order[:SHOWN].tolist()
    ]


def _report(name: str, scores: torch.Tensor, order: torch.Tensor) -> str:
    places = [
        f"{rank}. picture {int(i) + 1}: {float(scores[i]):.4f}" for rank, i in enumerate(order[:SHOWN], 1)
    ]
    more = [f"and {len(order) - SHOWN} more"] if len(order) > SHOWN else []
    mean = f"{name}, mean {float(scores.mean()):.4f} of {len(scores)}"
    return "\n".join([mean, *places, *more])
