"""RLR Train: the sockets as a TrainConfig, a run folder that is gone on with, and what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from rlr_core.config import (
    EvaluationConfig,
    LoraConfig,
    MethodConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
)
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

from . import host, images, live, names, sockets
from .schema import CATEGORY, Node, RlrMethod, RlrModel, RlrPrompts, RlrReward, opt, rare

RESUME, RESTART = "resume", "restart"


class TrainNode(Node):
    """Fine-tune a model on a reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Train",
            display_name="RLR Train",
            category=CATEGORY,
            description="Trains a LoRA that makes the model's pictures score higher. Cancel keeps "
            "everything: queue again and it goes on. More steps make a finished run longer.",
            inputs=train_inputs(),
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For RLR Save LoRA, RLR Apply LoRA and "
                                    "stock nodes that take a LORA_MODEL."),
                RlrModel.Output(display_name="model", tooltip="The model with the LoRA on, for RLR Sample."),
                io.Image.Output(display_name="before_after", tooltip="The same prompts and seeds before and "
                    "after."),
                io.Image.Output(display_name="chart", tooltip="Reward, held-out judge and KL over the "
                    "updates."),
                io.String.Output(display_name="run_folder", tooltip="Where everything about the run lies, "
                                 "for RLR Training Report."),
                io.LossMap.Output(display_name="loss_map", tooltip="Minus the reward of every update, for "
                                  "the stock loss plot."),
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
        folder = _train(cls, config, base, inputs["mode"] == RESTART)
        return _outputs(cls, folder, inputs["model"])


def config_from(inputs: dict[str, Any]) -> TrainConfig:
    """The inputs as the engine's settings."""
    model, prompts, reward = inputs["model"], inputs["prompts"], inputs["reward"]
    for name, value, kind in (("model", model, sockets.Model), ("prompts", prompts, sockets.Prompts),
                              ("reward", reward, sockets.Reward)):  # fmt: skip
        if not isinstance(value, kind):
            raise UserError(f"Input {name!r} of RLR Train must come from an RLR node.")
    if model.lora is not None:
        raise UserError("RLR Train starts from a model without a LoRA: connect RLR Load Checkpoint.")
    judge = inputs["judge"]
    return TrainConfig(
        model=model.path,
        dtype=model.dtype,
        reward=reward.name,
        reward_options=dict(reward.options),
        prompts=prompts.training,
        steps=inputs["steps"],
        batch=inputs["batch"],
        samples_per_prompt=inputs["samples_per_prompt"],
        micro_batch=inputs["micro_batch"],
        decode_batch=inputs["decode_batch"],
        gradient_checkpointing=inputs["gradient_checkpointing"],
        seed=inputs["seed"],
        save_every=5,
        sampler=SamplerConfig(
            steps=inputs["sampler_steps"],
            eta=inputs["eta"],
            guidance=inputs["guidance"],
            negative_prompt=inputs["negative_prompt"],
            last_step_noise=inputs["last_step_noise"],
            height=inputs["height"] or None,
            width=inputs["width"] or None,
            stage_boundaries=prompts.boundaries,
        ),
        method=inputs["method"] or MethodConfig(),
        lora=LoraConfig(
            rank=inputs["rank"],
            alpha=inputs["alpha"] or None,
            targets=inputs["targets"],
            text_encoder=inputs["text_encoder"],
        ),
        optimizer=OptimizerConfig(
            learning_rate=inputs["learning_rate"],
            max_grad_norm=inputs["max_grad_norm"],
            ema_decay=inputs["ema_decay"],
        ),
        evaluation=EvaluationConfig(
            judge=judge.name if judge else None,
            judge_options=dict(judge.options) if judge else {},
            prompts=prompts.held_out,
            samples=inputs["evaluation_samples"],
            every=inputs["evaluate_every"],
            batch=inputs["micro_batch"],
            stop_when_judge_drops=inputs["stop_when_judge_drops"],
        ),
    )


def _train(node: type, config: TrainConfig, base: Path, restart: bool) -> Path:
    """Bring the run to its last update and return its folder; at once where it is there already."""
    from rlr_core.training.results import find_runs, read_results

    *found, free = find_runs(base.parent, base.name, config)
    folder = free if restart or not found else found[-1]
    config.out = str(folder)
    if folder in found and read_results(folder).done(config):
        return folder
    watcher = live.Live(
        folder, str(node.hidden.unique_id), _workflow(node), config.evaluation.judge or "", config.reward
    )
    advice = _advice(config)
    try:
        with host.whole_device(advice) as device:
            _run(config, device, watcher, resume=folder in found)
    except BaseException as error:
        if host.was_cancelled(error):
            watcher.end("cancelled", "Cancelled. Queue again and it goes on here.")
        else:
            watcher.end("failed", str(error))
        raise
    watcher.end("finished")
    return folder


def _run(config: TrainConfig, device: Any, watcher: live.Live, resume: bool) -> None:
    from rlr_core.rewards import load_reward
    from rlr_core.training.trainer import train

    reward = load_reward(config.reward, **config.reward_options)
    recipe = sockets.Model(config.model, "", config.dtype)
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
    from safetensors.torch import load_file

    from rlr_core.common.weights import read_header
    from rlr_core.training.results import read_results

    results = read_results(folder)
    chart, pictures = folder / "reward.png", folder / "before_after.png"
    lora = sockets.LoraWeights(load_file(results.lora), read_header(results.lora).metadata)
    rewards = [row["reward/mean"] for row in results.metrics if row.get("reward/mean") is not None]
    view = live.view_of(
        folder, str(node.hidden.unique_id), _workflow(node), run=folder.name, state="finished", phase="",
        step=results.step, steps=results.config.steps, reward=results.config.reward,
        judge=results.config.evaluation.judge or "", message=_end(results.reason),
        seconds=(results.metrics or [{}])[-1].get("time/seconds", 0.0),
    )  # fmt: skip
    live.remember(view)
    return io.NodeOutput(
        lora,
        sockets.Model(model.path, model.name, model.dtype, str(results.lora)),
        images.read(pictures),
        images.read(chart),
        str(folder),
        {"loss": [-reward for reward in rewards]},
        ui={"images": [host.output_reference(pictures), host.output_reference(chart)], "rlr": [view]},
    )


def _end(reason: str) -> str:
    return "" if reason == "finished" else f"Stopped early: {reason}."


def train_inputs() -> list[io.Input]:
    """The inputs of RLR Train. Workflow files keep widgets by place: only ever add at the end."""
    return [
        RlrModel.Input("model", tooltip="What is trained: RLR Load Checkpoint."),
        RlrPrompts.Input("prompts", tooltip="What it is trained on: RLR Prompts."),
        RlrReward.Input("reward", tooltip="What it is trained for: RLR Reward."),
        RlrMethod.Input("method", optional=True, tooltip="How: RLR Method; adaptive if nothing is "
            "connected."),
        RlrReward.Input("judge", optional=True,
                        tooltip="A second reward that is only watched: when it falls while the reward rises, "
                        "the model has learned to please the reward, not you."),
        io.Int.Input("steps", default=100, min=1, max=100_000,
                     tooltip="Updates. Raise it later to go on with a finished run."),
        io.Float.Input("learning_rate", default=3e-4, min=1e-7, max=0.1, step=1e-5, round=1e-7,
                       tooltip="Size of an update. Too high: pictures fall apart; too low: nothing happens."),
        io.Int.Input("batch", default=16, min=1, max=1024, tooltip="Pictures per update."),
        io.Int.Input("samples_per_prompt", default=4, min=1, max=64,
                     tooltip="Pictures of one prompt in a batch, which are compared with each other."),
        io.Int.Input("width", default=0, min=0, max=2048, step=8,
                     tooltip="Width of the pictures; 0 is what the model was made for."),
        io.Int.Input("height", default=0, min=0, max=2048, step=8,
                     tooltip="Height of the pictures; 0 is what the model was made for."),
        io.Int.Input("sampler_steps", default=20, min=2, max=200,
                     tooltip="Denoising steps per picture. Cost grows with it; 10 to 20 is plenty."),
        io.Float.Input("guidance", default=5.0, min=0.0, max=30.0, step=0.1,
                       tooltip="Classifier-free guidance in training, as cfg in KSampler; 1 halves the "
                       "cost."),
        io.Float.Input("eta", default=1.0, min=0.0, max=2.0, step=0.05,
                       tooltip="Noise that every step adds: 0 is DDIM (not for methods that learn from "
                       "noise), 1 is DDPM."),
        io.Int.Input("rank", default=8, min=1, max=256, tooltip="Rank of the LoRA: its size."),
        io.Int.Input("seed", default=0, min=0, max=2**53 - 1, control_after_generate=False,
                     tooltip="Seed of everything random. Another seed is another run."),
        io.String.Input("run_name", default="my-run",
                        tooltip="Name of the folder in output/rlr. With other settings under the same name "
                        "the run goes beside it, as my-run_2."),
        io.Combo.Input("mode", options=[RESUME, RESTART], default=RESUME,
                       tooltip="resume: go on where these settings got to; a finished run is returned at "
                       "once. restart: from the beginning, in a new folder, every time it is queued."),
        rare(io.String.Input, "negative_prompt", default="", tooltip="What guidance steers away from."),
        rare(io.Float.Input, "alpha", default=0.0, min=0.0, max=1024.0, step=1.0,
             tooltip="The LoRA is scaled by alpha / rank; 0 takes alpha = rank."),
        rare(io.Combo.Input, "targets", options=["attention", "attention+ff", "all"], default="attention",
             tooltip="Which layers get a LoRA."),
        rare(io.Int.Input, "micro_batch", default=4, min=1, max=256,
             tooltip="Pictures at a time. Lower it when memory runs out; the result stays the same."),
        rare(io.Int.Input, "decode_batch", default=1, min=1, max=64,
             tooltip="Pictures decoded and scored at a time."),
        rare(io.Boolean.Input, "gradient_checkpointing", default=False,
             tooltip="Much less memory, a third slower."),
        rare(io.Float.Input, "last_step_noise", default=0.0, min=0.0, max=1.0, step=0.01,
             tooltip="Noise on the last step, so that rewards without a gradient reach it too: 0.05 is "
             "plenty."),
        rare(io.Int.Input, "evaluate_every", default=10, min=1, max=10_000,
             tooltip="Updates between two looks at held-out pictures."),
        rare(io.Int.Input, "evaluation_samples", default=16, min=2, max=1024,
             tooltip="Pictures per look; more make the judge's curve surer."),
        rare(io.Boolean.Input, "stop_when_judge_drops", default=False,
             tooltip="Stop when the judge falls significantly below its best, and keep the LoRA of the "
             "best."),
        rare(io.Float.Input, "max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.01, round=0.0001,
             tooltip="Gradients longer than this are shortened to it; 0 leaves them as they are. When a run "
             "walks off, set it to the usual gradient/norm of its metrics.jsonl."),
        rare(io.Float.Input, "ema_decay", default=0.0, min=0.0, max=0.9999, step=0.01, round=0.0001,
             tooltip="Decay of a running average of the LoRA, which is then watched and saved instead of the "
             "last; 0.9 calms short runs with a high learning rate."),
        rare(io.Boolean.Input, "text_encoder", default=False,
             tooltip="Train a LoRA on the text encoder too, in the same file: what prompts mean changes "
             "along. Load it with a node that takes CLIP as well."),
    ]  # fmt: skip
