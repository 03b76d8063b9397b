"""RLR Training Report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from torch import Tensor

from rlr_core.errors import UserError

from . import host, images
from .schema import CATEGORY, Node

if TYPE_CHECKING:
    from rlr_core.training.results import Results


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
            outputs=report_outputs(),
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, run_folder: str | None = None, **inputs: Any) -> str:
        """A run that went on is read again."""
        return written(lambda: host.run_folder(run_folder or ""), "metrics.jsonl")

    @classmethod
    def run(cls, run_folder: str) -> io.NodeOutput:
        from rlr_core.training.results import read_results

        results = read_results(host.run_folder(run_folder))
        summary = results.summary()
        return io.NodeOutput(chart_of(results), summary, ui={"text": [summary]})


def report_outputs() -> list[io.Output]:
    """What is told of a run."""
    return [
        io.Image.Output(
            display_name="chart",
            tooltip="Reward, held-out judge and distance from the base model over the updates.",
        ),
        io.String.Output(display_name="summary", tooltip="How far the run is, scores before and now, cost."),
    ]


def written(folder: Callable[[], Path], *files: str) -> str:
    """When the files of a run were last written, in one text; folder: raises UserError for what is no run."""
    try:
        paths = [folder() / name for name in files]
        return " ".join(str(path.stat().st_mtime_ns) for path in paths if path.is_file())
    except (UserError, OSError):
        return "missing"


def chart_of(results: Results) -> Tensor:
    """The curves of a run as an IMAGE."""
    from rlr_core.evaluation.plots import plot_reward
    from rlr_core.training.results import decimated

    config = results.config
    judge = config.evaluation.judge or f"{config.reward}, held out"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reward.png"
        plot_reward(decimated(results.metrics, 2000), path, config.reward, judge)
        return images.read(path)
