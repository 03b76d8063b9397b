"""RLR Training Report."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from rlr_core.errors import UserError

from . import host, images
from .schema import CATEGORY, Node


class TrainingReport(Node):
    """The chart and the figures of a run folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_TrainingReport",
            display_name="RLR Training Report",
            category=CATEGORY,
            description="Chart and summary of a run, also of an old one or one that was cancelled.",
            inputs=[
                io.String.Input("run_folder", default="my-run",
                                tooltip="run_folder of RLR Train, or the name of a folder in output/rlr."),
            ],
            outputs=[
                io.Image.Output(display_name="chart", tooltip="Reward, held-out judge and distance from the "
                    "base model over the updates."),
                io.String.Output(display_name="summary", tooltip="How far the run is, scores before and "
                    "now, cost."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, run_folder: str | None = None, **inputs: Any) -> str:
        """A run that went on is read again."""
        try:
            metrics = host.run_folder(run_folder or "") / "metrics.jsonl"
            return str(metrics.stat().st_mtime_ns)
        except (UserError, OSError):
            return "missing"

    @classmethod
    def run(cls, run_folder: str) -> io.NodeOutput:
        from rlr_core.evaluation.plots import plot_reward
        from rlr_core.training.results import decimated, read_results

        results = read_results(host.run_folder(run_folder))
        config = results.config
        judge = config.evaluation.judge or f"{config.reward}, held out"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "reward.png"
            plot_reward(decimated(results.metrics, 2000), path, config.reward, judge)
            chart = images.read(path)
        summary = results.summary()
        return io.NodeOutput(chart, summary, ui={"text": [summary]})
