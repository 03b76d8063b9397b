"""RLR Train: its inputs as a TrainConfig; the run itself is in node_run.py."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rlr_core.config import MethodConfig, TrainConfig, config_from_dict
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

from . import host, names, questions, sampling, sockets
from .node_run import NodeRun
from .schema import (
    CATEGORY,
    Node,
    RlrMethod,
    RlrModel,
    RlrPrompts,
    RlrReward,
    opt,
    setting_input,
    settings_from,
)

RESUME, RESTART = "resume", "restart"

SETTINGS = {
    "steps": "steps",
    "learning_rate": "optimizer.learning_rate",
    "batch": "batch",
    "samples_per_prompt": "samples_per_prompt",
    "width": "sampler.width",
    "height": "sampler.height",
    "sampler_steps": "sampler.steps",
    "guidance": "sampler.guidance",
    "eta": "sampler.eta",
    "rank": "lora.rank",
    "seed": "seed",
    "negative_prompt": "sampler.negative_prompt",
    "alpha": "lora.alpha",
    "targets": "lora.targets",
    "micro_batch": "micro_batch",
    "decode_batch": "decode_batch",
    "gradient_checkpointing": "gradient_checkpointing",
    "last_step_noise": "sampler.last_step_noise",
    "evaluate_every": "evaluation.every",
    "evaluation_samples": "evaluation.samples",
    "stop_when_judge_drops": "evaluation.stop_when_judge_drops",
    "max_grad_norm": "optimizer.max_grad_norm",
    "ema_decay": "optimizer.ema_decay",
    "text_encoder": "lora.text_encoder",
}
"""Input -> setting."""


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
                io.Image.Output(display_name="chart", tooltip="Reward, held-out judge and KL "
                    "divergence over the updates."),
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
    def fingerprint_inputs(cls, run_name: str | None = None, **inputs: Any) -> str:
        """A run whose pictures were rated goes on; run_name is None where it comes through a link."""
        return questions.answered(run_name)


def config_from(inputs: dict[str, Any]) -> TrainConfig:
    """The inputs as the engine's settings."""
    model, prompts, reward = inputs["model"], inputs["prompts"], inputs["reward"]
    for name, value, kind in (("model", model, sockets.Model), ("prompts", prompts, sockets.Prompts),
                              ("reward", reward, sockets.Reward)):  # fmt: skip
        if not isinstance(value, kind):
            raise UserError(f"Input {name!r} of RLR Train must come from an RLR node.")
    if model.lora is not None:
        raise UserError(
            "RLR Train starts from a model without a LoRA: connect RLR Load Checkpoint or RLR From ComfyUI."
        )
    judge = inputs["judge"]
    if judge is not None and judge.person is not None:
        raise UserError(
            "A person cannot be the judge, who sees hundreds of pictures: connect RLR Rate to reward."
        )
    data = settings_from(sampling.filled(inputs, model, "sampler_steps", "guidance"), SETTINGS)
    data |= {
        "model": model.path,
        "dtype": model.dtype,
        "reward": reward.name,
        "reward_options": dict(reward.options),
        "prompts": prompts.training,
        "method": inputs["method"] or MethodConfig(),
    }
    data["sampler"]["stage_boundaries"] = prompts.boundaries
    data["evaluation"] |= {
        "judge": judge.name if judge else None,
        "judge_options": dict(judge.options) if judge else {},
        "prompts": prompts.held_out,
        "batch": inputs["micro_batch"],
    }
    return config_from_dict(data)


def train_inputs() -> list[io.Input]:
    """The inputs of RLR Train. Workflow files keep widgets by place: only ever add at the end."""

    def take(name: str, **changes: Any) -> io.Input:
        return setting_input(SETTINGS[name], name, **changes)

    return [
        RlrModel.Input("model", tooltip="What is trained: RLR Load Checkpoint or RLR From ComfyUI."),
        RlrPrompts.Input("prompts", tooltip="What it is trained on: RLR Prompts."),
        RlrReward.Input("reward", tooltip="What it is trained for: RLR Reward."),
        RlrMethod.Input(
            "method",
            optional=True,
            tooltip="How it is trained: RLR Method; adaptive if nothing is connected.",
        ),
        RlrReward.Input(
            "judge",
            optional=True,
            tooltip="A second reward that training does not follow: when it falls while the reward rises, "
            "the model has learned to please the reward, not you.",
        ),
        take("steps", max=100_000),
        take("learning_rate", min=1e-7, max=0.1, round=1e-7),
        take("batch", max=1024),
        take("samples_per_prompt", max=64),
        take("width", max=2048, step=8),
        take("height", max=2048, step=8),
        sampling.steps_input("sampler_steps"),
        sampling.guidance_input("guidance"),
        take("eta"),
        take("rank", max=256),
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
        take("negative_prompt", advanced=True),
        take("alpha", advanced=True, max=1024.0),
        take("targets", advanced=True),
        take("micro_batch", advanced=True, max=256),
        take("decode_batch", advanced=True, max=64),
        take("gradient_checkpointing", advanced=True),
        take("last_step_noise", advanced=True),
        take("evaluate_every", advanced=True, max=10_000),
        take("evaluation_samples", advanced=True, default=16, max=1024),
        take("stop_when_judge_drops", advanced=True),
        take("max_grad_norm", advanced=True, max=1000.0, round=0.0001),
        take("ema_decay", advanced=True, round=0.0001),
        take("text_encoder", advanced=True),
    ]
