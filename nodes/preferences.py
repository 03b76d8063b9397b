"""RLR Preferences."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from rlr_core.errors import UserError

from . import pair_questions, sockets
from .images import to_engine
from .prompts import lines
from .schema import CATEGORY, Node, RlrReward, opt, workflow_of
from .score import scores_of

BY_CLICK, BY_REWARD = "by click", "by reward"
MOST = 256


class PreferencesNode(Node):
    """Pairs of any pictures of a workflow, and which is the better one, as a file that dpo learns from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Preferences",
            display_name="RLR Preferences",
            category=CATEGORY,
            description="Collects pairs of pictures, your own, downloaded or generated, and which of the two "
            "is better. The method dpo learns from them without sampling.",
            inputs=[
                io.Image.Input("images", tooltip="Pictures; two after each other make a pair."),
                io.Image.Input(
                    "images_b",
                    optional=True,
                    tooltip="As many pictures to compare with: left is one of images, right one of these.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=False,
                    tooltip="What the pictures show, as in RLR Prompts: one line for all pairs, or one for "
                    "each.",
                ),
                io.String.Input(
                    "name",
                    default="my-pairs",
                    tooltip="Name of the collection in output/rlr/pairs. The pairs of every run are added to "
                    "it; the same pair is asked about once.",
                ),
                io.Combo.Input(
                    "choose",
                    options=[BY_CLICK, BY_REWARD],
                    default=BY_CLICK,
                    tooltip="by click: you say which is better, in the node, by mouse or arrow keys. by "
                    "reward: the one that the reward scores higher.",
                ),
                RlrReward.Input("reward", optional=True, tooltip="With choose by reward: who says so."),
            ],
            outputs=[
                io.String.Output(
                    display_name="pairs",
                    tooltip="The file of all pairs that are decided, for RLR Method with method dpo.",
                ),
                io.Int.Output(display_name="count", tooltip="How many pairs are decided."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
            **opt(search_aliases=["dpo", "preference pairs", "compare images", "human feedback"]),
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs: Any) -> str:
        """Every click changes the file."""
        return pair_questions.stamp(name or "")

    @classmethod
    def run(
        cls, images: Any, images_b: Any, prompt: str, name: str, choose: str, reward: Any
    ) -> io.NodeOutput:
        left, right = _couples(images, images_b)
        prompts = _prompts(prompt, len(left))
        choices = [None] * len(left) if choose == BY_CLICK else _by_reward(left, right, prompts, reward)
        collection = pair_questions.collection(name)
        for *pair, text, choice in zip(to_engine(left), to_engine(right), prompts, choices, strict=True):
            collection.add(*pair, text, choice)
        undecided = pair_questions.ask(name, str(cls.hidden.unique_id), workflow_of(cls))
        path = pair_questions.pairs_file(name)
        count = collection.save(path)
        report = f"{count} pairs in {path.name}" + (
            f", {undecided} wait for your choice" if undecided else ""
        )
        return io.NodeOutput(str(path) if count else ExecutionBlocker(None), count, ui={"text": [report]})


def _couples(images: Any, others: Any) -> tuple[Any, Any]:
    """The left and the right picture of every pair, an IMAGE each."""
    if others is None:
        if len(images) < 2:
            raise UserError("One picture makes no pair: connect a batch of two or more, or images_b.")
        images, others = images[0 : len(images) // 2 * 2 : 2], images[1::2]
    if len(images) != len(others):
        raise UserError(f"images has {len(images)} pictures and images_b {len(others)}: give as many.")
    if len(images) > MOST:
        raise UserError(f"{len(images)} pairs at once are too many; give at most {MOST}.")
    return images, others


def _prompts(text: str, count: int) -> list[str]:
    prompts = lines(text) or [""]
    if len(prompts) not in (1, count):
        raise UserError(f"There are {len(prompts)} prompts for {count} pairs: write one, or one for each.")
    return prompts * count if len(prompts) == 1 else prompts


def _by_reward(left: Any, right: Any, prompts: list[str], reward: Any) -> list[str]:
    """'left', 'right', or 'skip' where the reward says the same of both."""
    if not isinstance(reward, sockets.Reward) or reward.person is not None:
        raise UserError("choose by reward needs a reward: connect RLR Reward.")
    scores = [scores_of(pictures, reward, prompts, batch=4).tolist() for pictures in (left, right)]
    return ["skip" if a == b else "left" if a > b else "right" for a, b in zip(*scores, strict=True)]
