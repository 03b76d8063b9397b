"""RLR Train Settings: what RLR Train chooses by itself, for whoever wants it otherwise."""

from __future__ import annotations

from typing import Any, NamedTuple

from comfy_api.latest import io

from . import sockets
from .defaults import AUTO
from .schema import CATEGORY, Node, RlrSettings, left_open, opt, setting_input

ON, OFF = "on", "off"


class Widget(NamedTuple):
    """An input of the node."""

    name: str
    setting: str
    label: str
    """What the node writes beside it: its group, then what it is."""
    left_alone: Any = None
    """The value that leaves the choice to RLR Train; None where the setting's own default does."""
    chosen: str = ""
    """What RLR Train then chooses."""
    changes: dict[str, Any] = {}
    """What is otherwise here than at the setting."""


SIDE = {"max": 2048, "step": 8}
AS_SIZE = "0: as size of RLR Train says."
WIDGETS = [
    Widget("rank", "lora.rank", "LoRA: rank", changes={"max": 256}),
    Widget("alpha", "lora.alpha", "LoRA: alpha", changes={"max": 1024.0}),
    Widget("targets", "lora.targets", "LoRA: targets"),
    Widget("text_encoder", "lora.text_encoder", "LoRA: text encoder"),
    Widget(
        "learning_rate",
        "optimizer.learning_rate",
        "optimizer: learning rate",
        0.0,
        "0.0003; for the built-in model 0.002, 0.003 with RLR Rate",
        {"max": 0.1, "round": 1e-7},
    ),
    Widget("warmup", "optimizer.warmup", "optimizer: warmup (updates)", changes={"max": 10_000}),
    Widget(
        "max_grad_norm",
        "optimizer.max_grad_norm",
        "optimizer: max grad norm",
        -1.0,
        "1, 0.1 for the built-in model",
        {"max": 1000.0, "round": 0.0001},
    ),
    Widget(
        "ema_decay",
        "optimizer.ema_decay",
        "optimizer: ema decay",
        -1.0,
        "0; 0.9 for the built-in model without RLR Rate",
        {"round": 0.0001},
    ),
    Widget(
        "samples_per_prompt",
        "samples_per_prompt",
        "sampling: samples per prompt",
        0,
        "4, or what the batch can be divided by with two prompts in it",
        {"max": 64},
    ),
    Widget(
        "eta",
        "sampler.eta",
        "sampling: eta",
        -1.0,
        "1, 0.5 for flow models, 0.7 for the built-in model",
    ),
    Widget("last_step_noise", "sampler.last_step_noise", "sampling: last step noise"),
    Widget("negative_prompt", "sampler.negative_prompt", "sampling: negative prompt"),
    Widget(
        "width",
        "sampler.width",
        "sampling: width (pixels)",
        changes=SIDE | {"tooltip": f"Picture width in pixels. {AS_SIZE}"},
    ),
    Widget(
        "height",
        "sampler.height",
        "sampling: height (pixels)",
        changes=SIDE | {"tooltip": f"Picture height in pixels. {AS_SIZE}"},
    ),
    Widget(
        "micro_batch",
        "micro_batch",
        "memory: micro batch (pictures)",
        0,
        "4 for Stable Diffusion 1 and 2, 1 for larger models, 16 for the built-in one",
        {"max": 256},
    ),
    Widget(
        "decode_batch",
        "decode_batch",
        "memory: decode batch (pictures)",
        0,
        "1, 16 for the built-in model",
        {"max": 64},
    ),
    Widget(
        "gradient_checkpointing",
        "gradient_checkpointing",
        "memory: gradient checkpointing",
        AUTO,
        "on, except for the built-in model",
    ),
    Widget(
        "evaluate_every",
        "evaluation.every",
        "evaluation: every (updates)",
        0,
        "10, 16 for the built-in model, 1 with RLR Rate",
        {"max": 10_000},
    ),
    Widget(
        "evaluation_samples",
        "evaluation.samples",
        "evaluation: samples (pictures)",
        0,
        "16, 4 for videos, 128 for the built-in model, 64 with RLR Rate",
        {"max": 1024},
    ),
    Widget(
        "stop_when_judge_drops",
        "evaluation.stop_when_judge_drops",
        "guard: stop when judge drops",
        AUTO,
        "on where a judge is connected and nobody rates",
    ),
]
SETTINGS = {widget.name: widget.setting for widget in WIDGETS}
"""Input -> setting."""


class TrainSettingsNode(Node):
    """Everything about a run that RLR Train does not show."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_TrainSettings",
            display_name="RLR Train Settings",
            category=CATEGORY,
            description="What RLR Train decides by itself: LoRA, optimizer, sampling, memory, evaluation and "
            "guards. Change what you know better; what you leave alone follows the model.",
            inputs=[_input(widget) for widget in WIDGETS],
            outputs=[RlrSettings.Output(display_name="settings", tooltip="For settings of RLR Train.")],
            **opt(search_aliases=["learning rate", "lora rank", "gradient checkpointing", "warmup", "ema"]),
        )

    @classmethod
    def run(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(sockets.TrainSettings(chosen(inputs)))


def chosen(inputs: dict[str, Any]) -> dict[str, Any]:
    """Setting -> value of the inputs that were not left alone."""
    values = {}
    for widget in WIDGETS:
        value = inputs[widget.name]
        if not _left_alone(widget, value):
            values[widget.setting] = value == ON if widget.left_alone == AUTO else value
    return left_open(values)


def _left_alone(widget: Widget, value: Any) -> bool:
    if widget.left_alone is None:
        return False
    return value == AUTO if widget.left_alone == AUTO else value <= widget.left_alone or value < 0


def _input(widget: Widget) -> io.Input:
    """The input of a widget."""
    changes = {"display_name": widget.label, "optional": True} | widget.changes
    usual = setting_input(widget.setting, widget.name, **changes)
    if widget.left_alone is None:
        return usual
    alone = widget.left_alone if widget.left_alone == AUTO else f"{widget.left_alone:g}"
    tooltip = f"{usual.tooltip} {alone}: chosen for you ({widget.chosen})."
    if widget.left_alone == AUTO:
        changes |= {"options": [AUTO, ON, OFF], "default": AUTO, "tooltip": tooltip}
        return io.Combo.Input(widget.name, **changes)
    changes |= {"min": widget.left_alone, "default": widget.left_alone, "tooltip": tooltip}
    return setting_input(widget.setting, widget.name, **changes)
