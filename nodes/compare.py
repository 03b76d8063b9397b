"""RLR Compare: the model without and with a LoRA, by eye and by number."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from rlr_core.errors import UserError

from . import defaults, host, images, sampling, sockets
from .lora import STRENGTH
from .schema import (
    CATEGORY,
    Node,
    RlrModel,
    RlrPrompts,
    RlrReward,
    opt,
    rare,
    setting_input,
    settings_from,
)

if TYPE_CHECKING:
    from rlr_core.evaluation.comparison import Comparison, Variant
    from rlr_core.evaluation.measures import ConfidenceInterval

MOST = 1024
"""Pictures in all."""
MOST_STRENGTHS = 8
ROWS = 8
"""Of the grid."""
BASE = "base"
SETTINGS = {name: f"sampler.{name}" for name in ("steps", "guidance", "width", "height")}
"""Input -> setting."""


class CompareNode(Node):
    """Base against LoRA, two LoRAs, or strengths of one, on the same prompts and seeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Compare",
            display_name="RLR Compare",
            category=CATEGORY,
            description="Is the LoRA better, and how sure is that? Draws the same prompts and seeds without "
            "and with it, or with two LoRAs, or at several strengths. Works for any LoRA, without training.",
            inputs=[
                RlrModel.Input("model", tooltip="From RLR Load Checkpoint or RLR From ComfyUI; a LoRA that "
                               "it wears is taken off."),
                io.LoraModel.Input("lora", tooltip="From RLR Train, RLR Runs, or any node that gives a "
                                   "LORA_MODEL."),
                RlrPrompts.Input("prompts", tooltip="What is drawn: the held-out prompts where there are "
                                 "any, else all."),
                RlrReward.Input("rewards", tooltip="What they are compared by; of RLR Combine Rewards each "
                                "part for itself."),
                io.LoraModel.Input("lora_b", optional=True, tooltip="A second LoRA, to be compared too."),
                io.String.Input("strengths", default="0, 1",
                                tooltip="Strengths of the LoRA, with commas between; 0 is the model without "
                                "it. The others are compared with the first."),
                io.Int.Input("most_prompts", default=16, min=1, max=256,
                             tooltip="At most this many prompts, evenly taken; the interval gets narrower "
                             "with more prompts."),
                io.Int.Input("per_prompt", default=2, min=2, max=64,
                             tooltip="Pictures of each prompt, each with its own seed."),
                sampling.steps_input("steps"),
                sampling.guidance_input("guidance"),
                io.Int.Input("seed", default=0, min=0, max=2**53 - 1, control_after_generate=False,
                             tooltip="Which seeds are drawn; the same for all that is compared."),
                setting_input("sampler.width", max=2048, step=8, advanced=True),
                setting_input("sampler.height", max=2048, step=8, advanced=True),
                rare(io.Int.Input, "batch", default=4, min=1, max=64, tooltip="Pictures at a time."),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row for a prompt and seed, a column for each "
                                "thing compared, the best of a row framed."),
                io.String.Output(display_name="report", tooltip="How often each beats the first, and by how "
                                 "much, with 95 % intervals."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            **opt(search_aliases=["a/b test", "win rate", "compare lora", "evaluate lora", "strength"]),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strengths: str | None = None) -> bool | str:
        """Strengths that are none are told when Run is pressed; None comes through a link."""
        try:
            strengths is None or read_strengths(strengths)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def run(cls, model: Any, lora: Any, prompts: Any, rewards: Any, **inputs: Any) -> io.NodeOutput:
        if not isinstance(model, sockets.Model) or not isinstance(prompts, sockets.Prompts):
            raise UserError("RLR Compare takes model and prompts from RLR nodes.")
        if not isinstance(rewards, sockets.Reward):
            raise UserError("RLR Compare takes rewards from an RLR node.")
        if rewards.person is not None:
            raise UserError("A person cannot be asked about hundreds of pictures: connect RLR Reward.")
        strengths = read_strengths(inputs["strengths"])
        prompts = defaults.prompts(prompts, model)
        chosen = evenly(prompts.held_out or prompts.training, inputs["most_prompts"])
        compared = variants(strengths, two=inputs["lora_b"] is not None)
        count = len(chosen) * inputs["per_prompt"]
        if count * len(compared) > MOST:
            raise UserError(
                f"{len(chosen)} prompts x {inputs['per_prompt']} pictures x {len(compared)} things compared "
                f"are more than {MOST} pictures: lower most_prompts or per_prompt."
            )
        inputs = sampling.filled(inputs, model, "steps", "guidance")
        for warning in sampling.warnings(model, inputs["guidance"]):
            host.log(warning)
            host.say(str(cls.hidden.unique_id), warning)
        recipe = defaults.reward(rewards, model)
        loras = {"lora": lora, "lora_b": inputs["lora_b"]}
        comparison = _compare(model, loras, compared, recipe, chosen, count, prompts.boundaries, inputs)
        told = report(comparison)
        return io.NodeOutput(_grid(comparison), told, ui={"text": [told]})


def read_strengths(text: str) -> list[float]:
    """The numbers of a list such as "0, 0.5, 1", each once. Raises UserError."""
    low, high = STRENGTH["min"], STRENGTH["max"]
    parts = [part for part in text.replace(";", ",").replace(" ", ",").split(",") if part]
    try:
        found = list(dict.fromkeys(float(part) for part in parts))
    except ValueError:
        found = []
    if not found or len(found) > MOST_STRENGTHS or not all(low <= strength <= high for strength in found):
        raise UserError(
            f"strengths is {text[:80]!r}: write 1 to {MOST_STRENGTHS} numbers from {low:g} to {high:g} with "
            "commas between, such as 0, 0.5, 1."
        )
    return found


def variants(strengths: list[float], two: bool) -> list[tuple[str, str, float]]:
    """What is compared, in order: its name, the input of its LoRA, the strength.

    Raises UserError where that is one thing only.
    """
    called = {"lora": "LoRA A" if two else "LoRA"} | ({"lora_b": "LoRA B"} if two else {})
    plain = [strength for strength in strengths if strength] == [1.0]
    found: dict[str, tuple[str, str, float]] = {}
    for strength in strengths:
        for input_name, words in called.items():
            name = BASE if not strength else words if plain else f"{words} at {strength:g}"
            found.setdefault(name, (name, input_name, strength))
    if len(found) < 2:
        raise UserError(
            "There is nothing to compare with: write two strengths, such as 0, 1, or connect lora_b."
        )
    return list(found.values())


def evenly(prompts: list[Any], most: int) -> list[Any]:
    """At most so many, evenly taken from the list."""
    count = min(len(prompts), most)
    return [prompts[i * len(prompts) // count] for i in range(count)]


def rewards_of(recipe: sockets.Reward) -> dict[str, Any]:
    """A reward, or the parts of a combined one, by the names that their scores get."""
    from rlr_core.rewards import load_reward

    if recipe.name != "combine":
        return {recipe.name: recipe.load()}
    found: dict[str, Any] = {}
    for part in recipe.options["rewards"]:
        ((name, options),) = part.items()
        number = sum(known.partition(" ")[0] == name for known in found)
        found[f"{name} {number + 1}" if number else name] = load_reward(name, **options)
    return found


def _compare(
    model: sockets.Model,
    loras: dict[str, Any],
    compared: list[tuple[str, str, float]],
    recipe: sockets.Reward,
    prompts: list[Any],
    count: int,
    boundaries: Any,
    inputs: dict[str, Any],
) -> Comparison:
    """loras: LORA_MODEL or None by the input that it came by; count: pictures of each thing compared."""
    from rlr_core.common.listening import heard_inside
    from rlr_core.config import SamplerConfig
    from rlr_core.evaluation.comparison import Variant, compare

    settings = settings_from(inputs, SETTINGS)["sampler"]
    sampler = SamplerConfig(**settings, eta=0.0, stage_boundaries=boundaries)
    base = dataclasses.replace(model, lora=None)
    advice = "Lower batch, width or height."
    with tempfile.TemporaryDirectory() as folder, host.whole_device(advice) as device:
        files = {name: _written(lora, Path(folder) / f"{name}.safetensors") for name, lora in loras.items()}
        rewards = rewards_of(recipe)
        things = [Variant(name, files[of] if strength else None, strength) for name, of, strength in compared]
        with host.loaded(base, device) as (loaded, _), heard_inside(loaded, host.check_cancel):
            try:
                return compare(
                    loaded,
                    things,
                    rewards,
                    prompts,
                    sampler,
                    samples=count,
                    seed=inputs["seed"],
                    batch=inputs["batch"],
                    keep=ROWS,
                    on_progress=_progress(things, count),
                )
            except UserError as error:  # in which a LoRA goes by the name of its input
                raise UserError(str(error).replace(f"{folder}/", "").replace(".safetensors", "")) from error


def _written(lora: Any, path: Path) -> Path | None:
    """A LORA_MODEL as a file, which the engine checks as a whole; None for none."""
    from rlr_core.lora.formats import write_tensors

    if lora is None:
        return None
    tensors = {key: value.detach().cpu().contiguous() for key, value in lora.items()}
    write_tensors(tensors, path, dict(getattr(lora, "metadata", {})))
    return path


def _progress(things: list[Variant], count: int) -> Callable[[str], Callable[[int, int], None]]:
    """For the engine: by the name of a thing compared, what is told how many of its pictures are done."""
    bar = host.Progress(len(things) * count)
    names = [thing.name for thing in things]

    def of(name: str) -> Callable[[int, int], None]:
        before = names.index(name) * count

        def report(done: int, total: int) -> None:
            host.check_cancel()
            bar.show(before + done)

        return report

    return of


def report(comparison: Comparison) -> str:
    """For each reward a line for each thing compared: its mean, how often it beats the first, by how much."""
    from rlr_core.evaluation.plots import percent

    first = comparison.evaluations[comparison.first]
    prompts = len(dict.fromkeys(first.prompts))
    lines = [
        f"{len(first.prompts)} pictures of {prompts} prompts each, with the same seeds; in brackets: 95 % "
        "intervals."
    ]
    for reward in comparison.rewards:
        lines.append(f"{reward}: {comparison.first} {first.estimate(reward).mean:.4g}")
        for name in comparison.others:
            mean = comparison.evaluations[name].estimate(reward).mean
            gain = comparison.gain(name, reward)
            ends = "" if gain.low is None else f" [{gain.low:+.3g}, {gain.high:+.3g}]"
            rate = comparison.win_rate(name, reward)
            wins = f"wins {percent(rate)} of the pairs"
            lines.append(f"  {name}: {mean:.4g}, {wins}, {gain.mean:+.3g}{ends}; {_sure(rate)}")
    return "\n".join(lines)


def _sure(rate: ConfidenceInterval) -> str:
    """What the interval of a win rate says, in words."""
    if rate.low is None or rate.high is None:
        return "one prompt alone says little"
    if rate.low > 0.5:
        return "better"
    return "worse" if rate.high < 0.5 else "not sure: more prompts would tell"


def _grid(comparison: Comparison) -> Any:
    """The pictures as an IMAGE, judged by the first reward."""
    from rlr_core.evaluation.plots import plot_comparison

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        plot_comparison(comparison, path, comparison.rewards[0], ROWS)
        return images.read(path)
