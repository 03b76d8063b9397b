"""RLR Method."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rlr_core.config import MethodConfig

from .pair_questions import pairs_file
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
    "surrogate": "method.surrogate",
    "inner_steps": "method.inner_steps",
    "noise_levels": "method.noise_levels",
    "noise_law": "method.noise_law",
    "least_noise": "method.least_noise",
    "most_noise": "method.most_noise",
    "train_guided": "method.train_guided",
    "snapshot_decay": "method.snapshot_decay",
    "norm_guard": "method.norm_guard",
    "nft_beta": "method.nft_beta",
    "dpo_beta": "method.dpo_beta",
    "pairs": "method.pairs",
    "d3po_beta": "method.d3po_beta",
    "temperature": "method.temperature",
    "accept": "method.accept",
    "accept_count": "method.accept_count",
    "accept_threshold": "method.accept_threshold",
    "accept_at": "method.accept_at",
    "sample_from": "method.sample_from",
    "buffer": "method.buffer",
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
            "auto with its defaults. Only the settings of the method chosen are shown and read.",
            inputs=method_inputs(),
            outputs=[RlrMethod.Output(display_name="method", tooltip="For RLR Train.")],
        )

    @classmethod
    def run(cls, method: str, **inputs: Any) -> io.NodeOutput:
        if inputs["start_j"] == "range":
            inputs["start_range"] = [inputs["first_j"], inputs["last_j"]]
        table = SETTINGS | ({"start_range": "method.start_range"} if "start_range" in inputs else {})
        read = _read_by(method)
        taken = {name: key for name, key in table.items() if key in read}
        if "pairs" in taken and inputs["pairs"]:
            inputs["pairs"] = str(pairs_file(inputs["pairs"]))
        # What the method does not read stays at its default, so that it starts no new run.
        return io.NodeOutput(MethodConfig(method, **settings_from(inputs, taken)["method"]))


def inputs_of() -> dict[str, list[str]]:
    """Method -> the inputs that it reads."""
    from rlr_core.methods import METHODS

    read = {method: _read_by(method) for method in METHODS}
    found = {method: [name for name, key in SETTINGS.items() if key in read[method]] for method in METHODS}
    for names in found.values():
        names += ["first_j", "last_j"] if "start_j" in names else []
    return found


def _read_by(method: str) -> set[str]:
    """Keys of the settings that a method reads."""
    return {setting.key for setting in MethodConfig.settings() if method in (setting.methods or [method])}


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
            tooltip="auto suits most rewards. The help page of this node has a line on each.",
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
        take("surrogate", advanced=True),
        take("inner_steps"),
        take("noise_levels"),
        take("noise_law", advanced=True),
        take("least_noise", advanced=True),
        take("most_noise", advanced=True),
        take("train_guided", advanced=True),
        take("snapshot_decay", advanced=True),
        take("norm_guard", advanced=True, max=1000.0),
        take("nft_beta"),
        take("dpo_beta", max=1e6),
        take("pairs"),
        take("d3po_beta", max=1000.0),
        take("temperature", max=1000.0),
        take("accept"),
        take("accept_count", max=64),
        take("accept_threshold", min=-1e6, max=1e6, step=0.01),
        take("accept_at"),
        take("sample_from", advanced=True),
        take("buffer"),
    ]
