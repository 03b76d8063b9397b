"""RLR Method."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rlr_core.config import MethodConfig

from .schema import CATEGORY, Node, RlrMethod, rare, setting_input, settings_from

SETTINGS = {
    "kl_weight": "method.kl_weight",
    "budget": "method.budget",
    "depth_K": "method.depth",
    "window_h": "method.window",
    "start_j": "method.start",
    "remainder": "method.remainder",
    "random_depth": "method.random_depth",
    "perturbation": "method.perturbation",
    "perturbations": "method.perturbations",
    "clip_range": "method.clip_range",
    "inner_epochs": "method.inner_epochs",
    "advantage": "method.advantage",
}
"""Input -> setting."""


class MethodNode(Node):
    """How the model learns: a MethodConfig."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Method",
            display_name="RLR Method",
            category=CATEGORY,
            description="How the model learns from its scored pictures. Without this node RLR Train uses "
            "adaptive with its defaults. Settings that belong to another method are ignored.",
            inputs=method_inputs(),
            outputs=[RlrMethod.Output(display_name="method", tooltip="For RLR Train.")],
        )

    @classmethod
    def run(cls, method: str, **inputs: Any) -> io.NodeOutput:
        if inputs["start_j"] == "range":
            inputs["start_range"] = [inputs["first_j"], inputs["last_j"]]
        table = SETTINGS | ({"start_range": "method.start_range"} if "start_range" in inputs else {})
        read = {setting.key for setting in MethodConfig.settings() if method in (setting.methods or [method])}
        taken = {name: key for name, key in table.items() if key in read}
        # What the method does not read stays at its default, so that it starts no new run.
        return io.NodeOutput(MethodConfig(method, **settings_from(inputs, taken)["method"]))


def method_inputs() -> list[io.Input]:
    """The inputs of RLR Method. Workflow files keep widgets by place: only ever add at the end."""
    from rlr_core.methods import METHODS

    def take(name: str, **changes: Any) -> io.Input:
        return setting_input(SETTINGS[name], name, **changes)

    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=MethodConfig().name,
            tooltip="adaptive suits most rewards. The help page of this node has a line on each.",
        ),
        take("kl_weight", max=100.0),
        take("budget", min=0.05),
        take("depth_K"),
        take("window_h"),
        take("start_j"),
        take("remainder"),
        rare(
            io.Int.Input,
            "first_j",
            default=2,
            min=2,
            max=10_000,
            tooltip="rlr with start_j range: the first step at which the window may start, counted from the "
            "picture.",
        ),
        rare(
            io.Int.Input,
            "last_j",
            default=2,
            min=2,
            max=10_000,
            tooltip="rlr with start_j range: the last step at which the window may start.",
        ),
        take("random_depth", advanced=True),
        take("perturbation", advanced=True, min=1e-5, max=1.0, round=1e-5),
        take("perturbations", advanced=True),
        take("clip_range", advanced=True, min=0.001, round=0.001),
        take("inner_epochs", advanced=True),
        take("advantage", advanced=True),
    ]
