"""RLR Train: its inputs as a TrainConfig; the run itself is in node_run.py."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rlr_core.config import MethodConfig, TrainConfig, config_from_dict
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

from . import defaults, host, names, questions, queued, sampling, sockets
from .defaults import AUTO
from .node_run import NodeRun
from .schema import (
    CATEGORY,
    Node,
    RlrMethod,
    RlrModel,
    RlrPrompts,
    RlrReward,
    RlrSettings,
    nested,
    opt,
    setting_input,
)

RESUME, RESTART = "resume", "restart"
MOST_BATCH = 1024

SETTINGS = {
    "steps": "steps",
    "batch": "batch",
    "sampler_steps": "sampler.steps",
    "guidance": "sampler.guidance",
    "seed": "seed",
}
"""Input -> setting."""
SIZES = [
    AUTO,
    *("256 x 256", "384 x 384", "512 x 512", "512 x 768", "768 x 512", "768 x 768", "1024 x 1024"),
    *("832 x 1216", "1216 x 832", "768 x 1344", "1344 x 768"),
]
"""Width x height; others are set in RLR Train Settings."""


class TrainNode(Node):
    """Fine-tune a model on a reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Train",
            display_name="RLR Train",
            category=CATEGORY,
            description="Trains a LoRA that makes the model's pictures score higher. Cancel keeps "
            "everything: queue again and the run goes on. With more steps a finished run goes on, too.",
            inputs=train_inputs(),
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For RLR Save LoRA, RLR Apply LoRA and "
                                    "stock nodes that take a LORA_MODEL."),
                RlrModel.Output(display_name="model", tooltip="The model with the LoRA on, for RLR Sample."),
                io.Image.Output(display_name="before_after", tooltip="The same prompts and seeds before and "
                    "after training."),
                io.Image.Output(display_name="chart", tooltip="Reward, held-out judge and "
                    "distance from the base model over the updates."),
                io.String.Output(display_name="run_folder", tooltip="The folder with everything about the "
                                 "run, for RLR Training Report."),
                io.LossMap.Output(display_name="loss_map", tooltip="Minus the reward of every update, for "
                                  "the stock loss plot."),
                io.Model.Output(display_name="patched_model", tooltip="The MODEL of RLR From ComfyUI, with "
                                "the LoRA on, for KSampler."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            **opt(search_aliases=["reward fine-tuning", "train lora", "rlhf", "ddpo", "draft", "alignprop"]),
        )  # fmt: skip

    @classmethod
    def run(cls, **inputs: Any) -> io.NodeOutput:
        base = names.inside(host.runs_folder(), inputs["run_name"])
        config = config_from(inputs)
        check_config(config)
        run = NodeRun(cls, config, inputs["model"], inputs["reward"].person)
        return run.outputs(base, restart=inputs["mode"] == RESTART)

    @classmethod
    def validate_inputs(cls, batch: int | None = None) -> bool | str:
        """What the nodes before it say that cannot be trained, as soon as Run is pressed."""
        node = str(cls.hidden.unique_id)
        _, own = queued.behind(node, "settings")
        per_prompt = own.get("samples_per_prompt", 0)
        if isinstance(batch, int) and isinstance(per_prompt, int):
            if not 1 <= batch <= MOST_BATCH:
                return f"it is {batch}; it must be between 1 and {MOST_BATCH}."
            if problem := batch_problem(batch, per_prompt):
                return problem
        _, model = queued.behind(node, "model")
        _, reward = queued.behind(node, "reward")
        elsewhere = model.get("checkpoint", host.DEMO) != host.DEMO
        if elsewhere and reward.get("reward") in defaults.OF_THE_DEMO:
            return defaults.foreign(reward["reward"])
        return True

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None = None, **inputs: Any) -> str:
        """A run whose pictures were rated goes on; run_name is None where it comes through a link."""
        return questions.answered(run_name)


def config_from(inputs: dict[str, Any]) -> TrainConfig:
    """The inputs as the engine's settings."""
    model, reward, judge = inputs["model"], inputs["reward"], inputs["judge"]
    _check_sockets(inputs)
    method = inputs["method"] or MethodConfig()
    prompts = defaults.prompts(inputs["prompts"], model)
    reward = defaults.reward(reward, model)
    if judge is not None:
        judge = defaults.reward(judge, model, judge=True)
    person = reward.person is not None
    values = defaults.settings(model, inputs["batch"], judge is not None, person)
    filled = sampling.filled(inputs, model, "sampler_steps", "guidance")
    values |= {key: filled[name] for name, key in SETTINGS.items()} | _size(inputs["size"])
    own = inputs["settings"].values if inputs["settings"] is not None else {}
    values |= {key: value for key, value in own.items() if value is not None or key not in values}
    values |= {
        "model": model.path,
        "dtype": model.dtype,
        "reward": reward.name,
        "reward_options": dict(reward.options),
        "prompts": prompts.training,
        "method": method,
        "sampler.stage_boundaries": prompts.boundaries,
        "evaluation.judge": judge.name if judge else None,
        "evaluation.judge_options": dict(judge.options) if judge else {},
        "evaluation.prompts": prompts.held_out,
    }
    values["evaluation.batch"] = values.get("micro_batch", TrainConfig().micro_batch)
    if problem := batch_problem(values["batch"], values["samples_per_prompt"]):
        raise UserError(problem)
    return config_from_dict(nested(values))


def batch_problem(batch: int, per_prompt: int) -> str:
    """What is wrong with a batch that cannot be divided among prompts; '' if it can."""
    if per_prompt < 1 or batch % per_prompt == 0:
        return ""
    higher = -(-batch // per_prompt) * per_prompt
    return (
        f"batch is {batch}, which cannot be divided by the {per_prompt} samples per prompt of RLR Train "
        f"Settings: set batch to {higher}, or samples per prompt to 0."
    )


def _check_sockets(inputs: dict[str, Any]) -> None:
    """Raise UserError for what is connected and cannot be."""
    for name, kind in (("model", sockets.Model), ("prompts", sockets.Prompts), ("reward", sockets.Reward),
                       ("settings", sockets.TrainSettings | None)):  # fmt: skip
        if not isinstance(inputs[name], kind):
            raise UserError(f"Input {name!r} of RLR Train must come from an RLR node.")
    if inputs["model"].lora is not None:
        raise UserError(
            "RLR Train starts from a model without a LoRA: connect RLR Load Checkpoint or RLR From ComfyUI."
        )
    if inputs["judge"] is not None and inputs["judge"].person is not None:
        raise UserError(
            "A person cannot be the judge, who sees hundreds of pictures: connect RLR Rate to reward."
        )


def _size(size: str) -> dict[str, int]:
    """Settings of a size from the list."""
    if size == AUTO:
        return {}
    width, height = size.split(" x ")
    return {"sampler.width": int(width), "sampler.height": int(height)}


def train_inputs() -> list[io.Input]:
    """The inputs of RLR Train. Workflow files keep widgets by place: only ever add at the end."""

    def take(name: str, **changes: Any) -> io.Input:
        return setting_input(SETTINGS[name], name, **changes)

    return [
        RlrModel.Input("model", tooltip="What is trained: RLR Load Checkpoint or RLR From ComfyUI."),
        RlrPrompts.Input("prompts", tooltip="What it is trained on: RLR Prompts."),
        RlrReward.Input("reward", tooltip="What it is trained for: RLR Reward."),
        RlrReward.Input(
            "judge",
            optional=True,
            tooltip="A second reward that only watches: when it falls while the reward rises, the model has "
            "learned to please the reward, not you.",
        ),
        RlrMethod.Input(
            "method",
            optional=True,
            tooltip="How it learns: RLR Method; auto if nothing is connected.",
        ),
        RlrSettings.Input(
            "settings",
            optional=True,
            tooltip="Everything else: RLR Train Settings; what suits the model if nothing is connected.",
        ),
        take("steps", max=100_000),
        take("batch", max=MOST_BATCH),
        io.Combo.Input(
            "size",
            options=SIZES,
            default=AUTO,
            tooltip="Width x height of the pictures in pixels. auto: what the model was made for. Other "
            "sizes are set in RLR Train Settings.",
        ),
        sampling.steps_input("sampler_steps"),
        sampling.guidance_input("guidance"),
        take("seed", max=2**53 - 1, control_after_generate=False),
        io.String.Input(
            "run_name",
            default="my-run",
            tooltip="Name of the folder in output/rlr. A run with other settings under the same name is "
            "saved beside it, as my-run_2.",
        ),
        io.Combo.Input(
            "mode",
            options=[RESUME, RESTART],
            default=RESUME,
            tooltip="resume: go on with the run of these settings; a finished run returns at once. restart: "
            "begin a new run, in a new folder, every time it is queued.",
        ),
    ]
