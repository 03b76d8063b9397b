"""RLR Runs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from rlr_core.errors import UserError

from . import host, names, sockets
from .report import chart_of, report_outputs, written
from .schema import CATEGORY, Node, opt

NONE = "no runs yet"
MOST = 500
"""Runs in the list."""
WHICH = ["last", "best by the judge"]


class RunsNode(Node):
    """A run of earlier: its LoRA, its curves, its figures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Runs",
            display_name="RLR Runs",
            category=CATEGORY,
            description="The runs in output/rlr, newest first: their LoRAs and curves, without training. To "
            "go on with one, queue its workflow again.",
            inputs=[
                io.Combo.Input("run", options=run_names() or [NONE],
                               tooltip="A folder in output/rlr, the newest first (press R to reload the "
                               "list)."),
                io.Combo.Input("which", options=WHICH, default=WHICH[0],
                               tooltip="last: the LoRA as the run left it. best by the judge: of the "
                               "evaluation that the judge liked best, of runs that stop when the judge "
                               "drops."),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For RLR Save LoRA, RLR Apply LoRA, RLR "
                                    "Compare and stock nodes that take a LORA_MODEL."),
                *report_outputs(),
            ],
            is_output_node=True,
            **opt(search_aliases=["load lora", "history", "earlier run", "checkpoint", "results"]),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, run: str | None = None, **inputs: Any) -> str:
        """A run that went on is read again."""
        files = ("metrics.jsonl", "lora.safetensors", "best_lora.safetensors")
        return written(lambda: names.inside(host.runs_folder(), run or ""), *files)

    @classmethod
    def validate_inputs(cls, run: str | None = None) -> bool | str:
        """What is no run is told when Run is pressed; None comes through a link."""
        if run is None:
            return True
        try:
            folder_of(run)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def run(cls, run: str, which: str) -> io.NodeOutput:
        from rlr_core.common.weights import read_header, read_tensors
        from rlr_core.training.results import read_results
        from rlr_core.training.saved_loras import saved_lora

        results = read_results(folder_of(run))
        path = saved_lora(results, which)
        lora = sockets.LoraWeights(read_tensors(path), read_header(path).metadata)
        summary = results.summary()
        return io.NodeOutput(lora, chart_of(results), summary, ui={"text": [summary]})


def run_names() -> list[str]:
    """The folders in output/rlr that hold a run, the one that was last written first."""
    found = []
    for config in host.runs_folder().glob("*/config.yaml"):
        for file in (config.with_name("metrics.jsonl"), config):  # one may be on its way out meanwhile
            with suppress(OSError):
                found.append((file.stat().st_mtime_ns, config.parent.name))
                break
    return [name for _, name in sorted(found, reverse=True)][:MOST]


def folder_of(run: str) -> Path:
    """The folder of a run. Raises UserError for what is none."""
    if run == NONE:
        raise UserError("There are no runs in output/rlr yet: RLR Train makes one; then press R.")
    folder = names.inside(host.runs_folder(), run)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"There is no run {run[:120]!r} in output/rlr; press R to reload the list.")
    return folder
