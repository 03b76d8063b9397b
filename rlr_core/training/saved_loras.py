"""The LoRAs that a run folder holds, without its model: the last one, and the best by the judge."""

from __future__ import annotations

from pathlib import Path

from rlr_core.errors import UserError
from rlr_core.training.export import JUDGE_DROPPED
from rlr_core.training.results import Results
from rlr_core.training.run_folder import BEST_LORA

LAST, BEST = "last", "best by the judge"


def saved_lora(results: Results, which: str) -> Path:
    """The file of a LoRA of a run. which: LAST or BEST. Raises UserError where the run does not have it."""
    name = results.folder.name
    if not results.lora.is_file():
        raise UserError(f"The run {name!r} has no LoRA yet: it is written when the run ends or is stopped.")
    if which == LAST or results.reason == JUDGE_DROPPED:  # which is why the last one is the best
        return results.lora
    best = results.folder / BEST_LORA
    if not best.is_file():
        raise UserError(
            f"The run {name!r} has not kept its best LoRA, as only runs do that stop when the judge drops: "
            f"take its {LAST} one."
        )
    return best
