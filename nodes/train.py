"""RLR Train: the sockets as a TrainConfig, a run folder that is gone on with, and what it leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from rlr_core.config import MethodConfig, TrainConfig, config_from_dict
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

from . import host, images, live, names, sampling, sockets
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

if TYPE_CHECKING:
    from rlr_core.training.results import Results

RESUME, RESTART = "resume", "restart"
NO_MODEL = "patched_model of RLR Train works with RLR From ComfyUI only: use RLR Apply LoRA on a stock MODEL."

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
        folder = _train(cls, config, base, inputs["mode"] == RESTART, inputs["model"])
        return _outputs(cls, folder, inputs["model"])


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


def _train(node: type, config: TrainConfig, base: Path, restart: bool, model: sockets.Model) -> Path:
    """Bring the run to its last update and return its folder; at once where it is there already."""
    from rlr_core.training.results import find_runs, read_results

    *runs, free = find_runs(base.parent, base.name, config)
    folder = free if restart or not runs else runs[-1]
    config.out = str(folder)
    if folder in runs and read_results(folder).done(config):
        return folder
    watcher = live.Live(
        folder, str(node.hidden.unique_id), _workflow(node), config.evaluation.judge or "", config.reward
    )
    for warning in sampling.warnings(model, config.sampler.guidance):
        watcher.warn(warning)
    advice = _advice(config)
    try:
        with host.whole_device(advice) as device:
            _run(config, model, device, watcher, resume=folder in runs)
    except BaseException as error:
        if host.was_cancelled(error):
            watcher.end("cancelled", "Cancelled. Queue again and it goes on here.")
        else:
            watcher.end("failed", str(error))
        raise
    watcher.end("finished")
    return folder


def _run(config: TrainConfig, recipe: sockets.Model, device: Any, watcher: live.Live, resume: bool) -> None:
    from rlr_core.rewards import load_reward
    from rlr_core.training.trainer import train

    reward = load_reward(config.reward, **config.reward_options)
    with host.loaded(recipe, device) as model:
        host.check_cancel()
        train(model, reward, config, on_event=watcher, check=host.check_cancel, resume=resume)


def _advice(config: TrainConfig) -> str:
    """What to lower when memory runs out, with the numbers that would be next."""
    ways = []
    if config.micro_batch > 1:
        ways.append(f"micro_batch to {config.micro_batch // 2} (same result, slower)")
    if not config.gradient_checkpointing:
        ways.append("gradient_checkpointing on")
    if config.sampler.width or config.sampler.height:
        ways.append("width and height")
    ways.append("the rank or targets of the LoRA")
    return f"What was done so far is saved; queue again after setting {', or '.join(ways)}."


def _workflow(node: type) -> str:
    """The id of the workflow, so that a view is not drawn into another workflow's node of the same number."""
    info = node.hidden.extra_pnginfo or {}
    return str((info.get("workflow") or {}).get("id") or "")


def _outputs(node: type, folder: Path, model: sockets.Model) -> io.NodeOutput:
    """Everything from the run folder, so that a run just finished and one of last week look the same."""

    from rlr_core.common.weights import read_header, read_tensors
    from rlr_core.training.results import read_results

    results = read_results(folder)
    chart, pictures = folder / "reward.png", folder / "before_after.png"
    animation = pictures.with_suffix(".webp")  # of a video model
    moving = animation.is_file()
    shown = [host.output_reference(path) for path in (animation if moving else pictures, chart)]
    lora = sockets.LoraWeights(read_tensors(results.lora), read_header(results.lora).metadata)
    rewards = [row["reward/mean"] for row in results.metrics if row.get("reward/mean") is not None]
    view = live.view_of(
        folder, str(node.hidden.unique_id), _workflow(node), run=folder.name, state="finished", phase="",
        step=results.step, steps=results.config.steps, reward=results.config.reward,
        judge=results.config.evaluation.judge or "", message=_end(results, model),
        seconds=(results.metrics or [{}])[-1].get("time/seconds", 0.0),
    )  # fmt: skip
    live.remember(view)
    return io.NodeOutput(
        lora,
        dataclasses.replace(model, lora=str(results.lora)),
        images.read_animation(animation) if moving else images.read(pictures),
        images.read(chart),
        str(folder),
        {"loss": [-reward for reward in rewards]},
        model.patched(lora) if isinstance(model, sockets.Native) else ExecutionBlocker(NO_MODEL),
        ui={"images": shown, "rlr": [view]} | ({"animated": (True,)} if moving else {}),
    )


def _end(results: Results, model: sockets.Model) -> str:
    """What the live view says of a run that is over; '' is its own word for one that went to its end."""
    early = "" if results.reason == "finished" else f"Stopped early: {results.reason}."
    wrong = sampling.warnings(model, results.config.sampler.guidance)
    return " ".join([early or "Finished.", *wrong]) if wrong else early


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
