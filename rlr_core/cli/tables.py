"""Tables of text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlr_core.evaluation.measures import ConfidenceInterval, Evaluation


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces between."""
    widths = [
        max(len(row[column]) for row in rows if column < len(row)) for column in range(max(map(len, rows)))
    ]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table; the first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def comparison(before: Evaluation, after: Evaluation | None, names: Mapping[str, str]) -> str:
    """Means, 95 % intervals, paired differences and diversity, a row a score.

    names: what to call each score, by its name in the evaluations. after: None shows `before` alone.
    """
    from rlr_core.evaluation.measures import difference

    heads = ["mean"] if after is None else ["before", "after", "difference"]
    rows = [[f"{len(before.prompts)} pictures", *heads]]
    for key, name in names.items():
        if key not in before.scores:
            continue
        row = [name, str(before.estimate(key))]
        if after is not None:
            row += [str(after.estimate(key)), signed(difference(before, after, key))]
        rows.append(row)
    if before.diversity is not None:
        row = ["diversity", f"{before.diversity:.3f}"]
        if after is not None:
            row += [f"{after.diversity:.3f}", f"{after.diversity - before.diversity:+.3f}"]
        rows.append(row)
    note = "Intervals are 95 %; differences are between pictures of the same prompt and seed."
    return f"{table(rows)}\n{note if after is not None else 'Intervals are 95 %.'}"


def signed(estimate: ConfidenceInterval) -> str:
    """A difference with its sign and interval."""
    interval = "" if estimate.low is None else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"
    return f"{estimate.mean:+.3f}{interval}"
