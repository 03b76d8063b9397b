"""The pictures a run leaves behind: the curves in reward.png, before_after.png; comparisons side by side.

Colors are told apart by people with any color vision, and nothing is said by color alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlr_core.common.images import to_pil

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from rlr_core.evaluation.comparison import Comparison
    from rlr_core.evaluation.measures import ConfidenceInterval, Evaluation

BLUE, ORANGE, GREEN, INK, FAINT = "#0072B2", "#D55E00", "#009E73", "#222222", "#777777"


def plot_reward(
    rows: Sequence[Mapping[str, Any]], path: str | Path, reward: str = "", judge: str = ""
) -> None:
    """reward.png: the training reward, the held-out judge and the KL divergence, one above the other.

    rows: of metrics.jsonl. Panels without a value are left out. reward, judge: their names, for the titles.
    """
    from matplotlib.ticker import MaxNLocator

    panels = [
        (_draw_reward, "reward/mean", _title("training reward", reward), BLUE),
        (_draw_judge, "judge/mean", _title("held-out judge", judge), ORANGE),
        (_draw_kl, "kl", "KL divergence to the base model", GREEN),
    ]
    panels = [panel for panel in panels if _series(rows, panel[1])[0]]
    figure = _figure(7.2, 1.0 + 2.1 * max(1, len(panels)))
    if not panels:
        figure.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", color=FAINT)
    shared = None
    for number, (draw, key, title, color) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, number + 1, sharex=shared)
        shared = shared or axes
        draw(axes, rows, key, color)
        axes.set_title(title, loc="left", fontsize=10, color=color, fontweight="bold", parse_math=False)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK, labelbottom=number == len(panels) - 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if number == len(panels) - 1:
            axes.set_xlabel("update", fontsize=9, color=INK)
    figure.savefig(path, dpi=150, format="png")


def plot_gains(gains: Mapping[str, Sequence[float]], path: str | Path, title: str) -> None:
    """Methods side by side: a dot for each training seed, a bar for their mean, the best method on top."""
    names = sorted(gains, key=lambda name: sum(gains[name]) / len(gains[name]))
    figure = _figure(7.2, 1.0 + 0.3 * len(names))
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        axes.barh(place, sum(gains[name]) / len(gains[name]), color=BLUE, alpha=0.35, height=0.7)
        axes.plot(gains[name], [place] * len(gains[name]), "o", color=BLUE, markersize=4)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8, color=INK)
    axes.set_title(f"{title} (dots: training seeds)", loc="left", fontsize=10, color=INK)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    figure.savefig(path, dpi=150, format="png")


def plot_before_after(
    before: Evaluation, after: Evaluation, path: str | Path, judge: str, count: int = 8
) -> None:
    """before_after.png: the same prompts and seeds without and with the adapter, and what `judge` says.

    before, after: evaluations of the same prompts and seeds that kept pictures; the first `count` are drawn.
    """
    count = min(count, len(before.images), len(after.images))
    columns = min(4, count)
    blocks = math.ceil(count / columns)
    captions = [_wrapped(prompt) for prompt in before.prompts[:count]]
    lines = max(caption.count("\n") + 1 for caption in captions)
    pictures = [to_pil(image) for image in before.images[:count]]
    tile = 1.75  # inches a picture is wide
    head, foot, left = 0.17 * lines + 0.12, 0.24, 0.7
    height = tile * pictures[0].height / pictures[0].width
    block = head + 2 * (height + foot) + 0.1
    width, total = left + columns * (tile + 0.12) + 0.05, blocks * block + 0.1
    figure = _figure(width, total, layout=None)
    for number in range(count):
        row, column = divmod(number, columns)
        x, top = left + column * (tile + 0.12), row * block + 0.06
        figure.text(
            (x + tile / 2) / width, 1 - (top + head - 0.09) / total, captions[number],
            ha="center", va="baseline", fontsize=8.5, color=INK, parse_math=False, linespacing=1.15,
        )  # fmt: skip
        for place, (evaluation, label) in enumerate(((before, "before"), (after, "after"))):
            y = top + head + place * (height + foot)
            axes = figure.add_axes((x / width, 1 - (y + height) / total, tile / width, height / total))
            picture = to_pil(evaluation.images[number])
            axes.imshow(picture, interpolation="nearest" if picture.width < 256 else "antialiased")
            axes.set_axis_off()
            if column == 0:
                figure.text(
                    (left - 0.12) / width, 1 - (y + height / 2) / total, label,
                    ha="right", va="center", fontsize=9, fontweight="bold", color=INK,
                )  # fmt: skip
            text, color = _verdict(evaluation.scores[judge], number)
            figure.text(
                (x + tile / 2) / width, 1 - (y + height + foot / 2 - 0.01) / total, f"{judge}: {text}",
                ha="center", va="center", fontsize=8, color=color, parse_math=False,
            )  # fmt: skip
    figure.savefig(path, dpi=150, format="png")


def plot_comparison(comparison: Comparison, path: str | Path, reward: str, count: int = 8) -> None:
    """A row a prompt and seed, a column a thing compared, what `reward` says below each picture.

    The column's head says how often it beats the first. The best picture of a row has a frame; the first
    `count` kept pictures are drawn.
    """
    names, first = list(comparison.evaluations), comparison.evaluations[comparison.first]
    count = min(count, *(len(evaluation.images) for evaluation in comparison.evaluations.values()))
    tile, foot, head, left, gap = 1.75, 0.24, 0.5, 1.75, 0.12  # inches
    sample = to_pil(first.images[0])
    height = tile * sample.height / sample.width
    width, total = left + len(names) * (tile + gap) + 0.05, head + count * (height + foot) + 0.1
    figure = _figure(width, total, layout=None)

    def write(x: float, y: float, text: str, size: float, **look: Any) -> None:
        look = {"ha": "center", "va": "center", "color": INK} | look
        figure.text(x / width, 1 - y / total, text, fontsize=size, parse_math=False, **look)

    for column, name in enumerate(names):
        x = left + column * (tile + gap)
        write(x + tile / 2, 0.16, _wrapped(name, 22, 1), 9, fontweight="bold")
        says = "" if name == comparison.first else f"wins {percent(comparison.win_rate(name, reward))}"
        write(x + tile / 2, 0.36, says, 8)
        for row in range(count):
            y = head + row * (height + foot)
            picture = to_pil(comparison.evaluations[name].images[row])
            axes = figure.add_axes((x / width, 1 - (y + height) / total, tile / width, height / total))
            axes.imshow(picture, interpolation="nearest" if picture.width < 256 else "antialiased")
            axes.set_xticks([])
            axes.set_yticks([])
            in_row = [float(e.scores[reward][row]) for e in comparison.evaluations.values()]
            best = in_row[column] == max(in_row) > min(in_row)
            axes.spines[:].set(color=BLUE, linewidth=2.5, visible=best)
            text, color = _verdict(comparison.evaluations[name].scores[reward], row)
            write(x + tile / 2, y + height + foot / 2, f"{reward}: {text}", 8, color=color)
    for row in range(count):
        middle = head + row * (height + foot) + height / 2
        write(left - 0.12, middle, _wrapped(first.prompts[row], 20, 5), 8.5, ha="right")
    figure.savefig(path, dpi=150, format="png")


def percent(interval: ConfidenceInterval) -> str:
    """A share as "62 % [51, 72]"."""
    mean, low, high = interval
    ends = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{100 * mean:.0f} %{ends}"


# --- the panels of reward.png ---


def _draw_reward(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, color: str) -> None:
    """A dot for every update's mean, a line for their running mean, a band of a standard deviation."""
    steps, means = _series(rows, key)
    spread = dict(zip(*_series(rows, "reward/std"), strict=True))
    smooth = _smoothed(means, len(means) // 12)
    low = [mean - spread.get(step, 0.0) for step, mean in zip(steps, smooth, strict=True)]
    high = [mean + spread.get(step, 0.0) for step, mean in zip(steps, smooth, strict=True)]
    axes.fill_between(steps, low, high, color=color, alpha=0.13, linewidth=0, label="spread within a batch")
    axes.plot(steps, means, ".", color=color, alpha=0.45, markersize=4, label="mean of an update")
    axes.plot(steps, smooth, color=color, linewidth=2, label="running mean")
    _legend(axes)


def _draw_judge(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, color: str) -> None:
    """Every evaluation with its 95 % interval, and a line at the base model's."""
    steps, means = _series(rows, key)
    low, high = (dict(zip(*_series(rows, name), strict=True)) for name in ("judge/low", "judge/high"))
    below = [max(0.0, mean - low.get(step, mean)) for step, mean in zip(steps, means, strict=True)]
    above = [max(0.0, high.get(step, mean) - mean) for step, mean in zip(steps, means, strict=True)]
    axes.axhline(means[0], color=FAINT, linewidth=1, linestyle="--", label="at the start")
    axes.errorbar(
        steps, means, [below, above], color=color, marker="o", markersize=4.5, linewidth=2, elinewidth=1.2,
        capsize=3, label="mean, 95 % interval",
    )  # fmt: skip
    _legend(axes)


def _draw_kl(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, color: str) -> None:
    """A dot for every update's estimate, which is rough, and a line for their running mean."""
    steps, values = _series(rows, key)
    axes.plot(steps, values, ".", color=color, alpha=0.45, markersize=4, label="an update's estimate")
    smooth = _smoothed(values, len(values) // 8)
    axes.plot(steps, smooth, color=color, linewidth=2, label="running mean")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the panel, where no curve runs."""
    axes.legend(
        fontsize=7.5, frameon=False, loc="lower right", bbox_to_anchor=(1.01, 0.985), ncols=3, labelcolor=INK,
        borderpad=0, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def _title(what: str, name: str) -> str:
    return what if name in ("", "judge", "reward") else f"{what}: {name}"


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `key`."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Means over the values up to `reach` places away."""
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


# --- small things ---


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _wrapped(prompt: str, width: int = 25, lines: int = 3) -> str:
    return "\n".join(textwrap.wrap(prompt, width, max_lines=lines, placeholder=" ...")) or "(no prompt)"


def _verdict(scores: Tensor, number: int) -> tuple[str, str]:
    """A score as text, and its color; a judge that says only yes and no gets a tick or a cross."""
    score = float(scores[number])
    if all(value in (0.0, 1.0) for value in scores.tolist()):
        return ("\u2713", BLUE) if score else ("\u2717", ORANGE)
    return f"{score:.3g}", INK
