"""RLR Method."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rlr_core.config import MethodConfig

from .schema import CATEGORY, Node, RlrMethod, rare

NAMES = ["adaptive", "rlr", "full", "truncated", "likelihood_ratio", "ddpo", "zeroth_order"]

COMMON = ("kl_weight", "advantage")
OWN = {
    "adaptive": ("budget",),
    "rlr": ("window", "start", "start_range", "remainder", "perturbation", "perturbations"),
    "truncated": ("depth", "random_depth"),
    "ddpo": ("clip_range", "inner_epochs"),
    "zeroth_order": ("perturbation", "perturbations"),
}
"""Settings that each method reads; the others stay at their defaults, so that they start no new run."""


class MethodNode(Node):
    """How the gradient is estimated: a MethodConfig."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        default = MethodConfig()
        return io.Schema(
            node_id="RLR_Method",
            display_name="RLR Method",
            category=CATEGORY,
            description="How the gradient is estimated. Without this node RLR Train uses adaptive with its "
            "defaults. Settings that belong to another method are ignored.",
            inputs=[
                io.Combo.Input(
                    "method", options=NAMES, default=default.name,
                    tooltip="adaptive: both estimators at every step, mixed by their noise; the default. "
                    "rlr: the paper's. full: back-propagation through every step (DRaFT). truncated: "
                    "through the last K (DRaFT-K, AlignProp). likelihood_ratio: REINFORCE. ddpo: PPO's clip. "
                    "zeroth_order: perturbed weights, rewards only.",
                ),
                io.Float.Input("kl_weight", default=default.kl_weight, min=0.0, max=100.0, step=0.001,
                               tooltip="Weight of the KL divergence to the base model: holds the model back "
                               "from pleasing the reward at any price. Try 0.01."),
                io.Float.Input("budget", default=default.budget, min=0.05, max=1.0, step=0.05,
                               tooltip="adaptive: share of the steps that is walked back on average; less is "
                               "faster and noisier."),
                io.Int.Input("depth_K", default=default.depth, min=1, max=1000,
                             tooltip="truncated: how many last steps are back-propagated through."),
                io.Int.Input("window_h", default=default.window, min=1, max=1000,
                             tooltip="rlr: length of the half-order window."),
                io.Combo.Input("start_j", options=["uniform", "gradient_norm", "range"],
                               default=default.start, tooltip="rlr: law of the window's first step j."),
                io.Combo.Input(
                    "remainder", options=["zeroth_order", "likelihood_ratio", "importance", "none"],
                    default=default.remainder,
                    tooltip="rlr: what covers the steps outside the window: zeroth_order (the paper), "
                    "likelihood_ratio, importance, or none (biased).",
                ),
                rare(io.Int.Input, "first_j", default=2, min=2, max=1000,
                     tooltip="rlr with start_j range: the smallest j, counted from the picture."),
                rare(io.Int.Input, "last_j", default=2, min=2, max=1000,
                     tooltip="rlr with start_j range: the largest j."),
                rare(io.Boolean.Input, "random_depth", default=default.random_depth,
                     tooltip="truncated: draw the depth anew for every trajectory (AlignProp)."),
                rare(io.Float.Input, "perturbation", default=default.perturbation, min=1e-5, max=1.0,
                     step=0.001, round=1e-5,
                     tooltip="rlr and zeroth_order: size of the noise on the LoRA's weights."),
                rare(io.Int.Input, "perturbations", default=default.perturbations, min=1, max=256,
                     tooltip="rlr and zeroth_order: perturbations per update."),
                rare(io.Float.Input, "clip_range", default=default.clip_range, min=0.001, max=1.0, step=0.01,
                     tooltip="ddpo: PPO's clip of the likelihood ratio."),
                rare(io.Int.Input, "inner_epochs", default=default.inner_epochs, min=1, max=32,
                     tooltip="ddpo: optimiser steps per update."),
                rare(io.Combo.Input, "advantage", options=["leave_one_out", "z_score", "running_mean"],
                     default=default.advantage, tooltip="What a reward is compared with."),
            ],
            outputs=[RlrMethod.Output(display_name="method", tooltip="For RLR Train.")],
        )  # fmt: skip

    @classmethod
    def run(cls, method: str, **widgets: Any) -> io.NodeOutput:
        widgets["depth"], widgets["window"] = widgets["depth_K"], widgets["window_h"]
        widgets["start"] = widgets["start_j"]
        if widgets["start"] == "range":
            widgets["start_range"] = [widgets["first_j"], widgets["last_j"]]
        taken = (*COMMON, *OWN.get(method, ()))
        settings = {name: widgets[name] for name in taken if name in widgets}
        return io.NodeOutput(MethodConfig(method, **settings))
