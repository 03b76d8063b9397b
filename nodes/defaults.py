"""What RLR Train does where nobody says otherwise: what the model and the judge want.

Widgets that are left alone are "auto" (0, -1 or the word) and are filled in here, so that four nodes with all
defaults train, whatever the model is.
"""

from __future__ import annotations

from typing import Any

from rlr_core.errors import UserError

from . import sockets

AUTO = "auto"
NO_FILE_NEEDED = "saturation"
"""The reward that auto is for models other than the built-in one: it needs no file and is soon seen."""
OF_THE_DEMO = ("demo", "judge")
"""Rewards that know the built-in model's pictures only."""
ETA_OF_FLOW = 0.5
"""Flow models want less noise a step than the DDPM-like 1 of the others."""
SMALL_FAMILY = "stable-diffusion"
"""Several pictures at a time fit where the others have room for one."""
COMPARED = (4, 3, 2)
"""How many pictures of a prompt are compared, the first that leaves two prompts in a batch."""


def settings(model: sockets.Model, batch: int, judged: bool, person: bool) -> dict[str, Any]:
    """Setting -> value where a model wants another than the engine's default.

    judged: whether there is a judge; person: whether a person rates the pictures.
    """
    wanted = _of_the_demo(person) if model.path == "demo" else _of_a_model(model)
    if person:
        wanted["evaluation.every"] = 1
    wanted["evaluation.stop_when_judge_drops"] = judged and not person
    return wanted | {"samples_per_prompt": pictures_per_prompt(batch)}


def pictures_per_prompt(batch: int) -> int:
    """Pictures of a prompt in a batch: as many as can be compared with at least two prompts in it."""
    for count in COMPARED:
        if batch % count == 0 and batch >= 2 * count:
            return count
    return batch if batch <= COMPARED[0] else 1


def reward(chosen: sockets.Reward, model: sockets.Model, judge: bool = False) -> sockets.Reward:
    """The reward that is meant. Raises UserError for the built-in model's on another model.

    judge: whether it is the judge, and auto means the built-in model's.
    """
    built_in = model.path == "demo"
    if chosen.name == AUTO:
        if judge and not built_in:
            raise UserError("The judge's RLR Reward is at auto: choose what it looks at, such as clip_score.")
        return sockets.Reward(OF_THE_DEMO[judge] if built_in else NO_FILE_NEEDED)
    if chosen.name in OF_THE_DEMO and not built_in:
        raise UserError(foreign(chosen.name))
    return chosen


def foreign(name: str) -> str:
    """What to say of a reward of the built-in model on another one."""
    return (
        f"The reward {name!r} knows the built-in model's pictures only: choose auto or another one in RLR "
        "Reward."
    )


def prompts(chosen: sockets.Prompts, model: sockets.Model) -> sockets.Prompts:
    """The prompts that are meant: the built-in model's own captions where RLR Prompts was left alone."""
    if not chosen.untouched or model.path != "demo":
        return chosen
    from rlr_core.demo.scenes import held_out_prompts, training_prompts

    return sockets.Prompts(training_prompts(), held_out_prompts())


def _of_the_demo(person: bool) -> dict[str, Any]:
    """The demo's own settings, with evaluations that take seconds."""
    from rlr_core.demo.preset import demo_config

    config = demo_config()
    wanted: dict[str, Any] = {
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.max_grad_norm": config.optimizer.max_grad_norm,
        "optimizer.ema_decay": config.optimizer.ema_decay,
        "sampler.eta": config.sampler.eta,
        "micro_batch": config.micro_batch,
        "decode_batch": config.decode_batch,
        "evaluation.every": config.evaluation.every,
        "evaluation.samples": 128,
    }
    if person:  # a few updates, each of them to be seen
        wanted |= {
            "optimizer.learning_rate": 3e-3,
            "optimizer.ema_decay": 0.0,
            "evaluation.samples": 64,
        }
    return wanted


def _of_a_model(model: sockets.Model) -> dict[str, Any]:
    """What fits a 12 GB card, if slowly."""
    wanted: dict[str, Any] = {
        "gradient_checkpointing": True,
        "evaluation.samples": 4 if model.moving else 16,
    }
    if model.family_name != SMALL_FAMILY:
        wanted["micro_batch"] = 1
    if model.flows:
        wanted["sampler.eta"] = ETA_OF_FLOW
    return wanted
