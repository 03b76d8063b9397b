"""Pictures of a run: drawn for any run, with nothing cut off and nothing on top of each other."""

import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from marks import quick
from PIL import Image

from rlr_core.common import images
from rlr_core.evaluation import plots
from rlr_core.evaluation.measures import Evaluation

PROMPTS = [
    "a red circle above a blue square",
    "costs $5, or $x_{",
    "",
    "a very long prompt, " * 30,
    "onewordwithoutaspace" * 10,
    "unbalanced \\frac{ % # &",
]


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved, to look into."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures = []

    save = Figure.savefig

    def remember(figure, *args, **options):
        save(figure, *args, **options)
        FigureCanvasAgg(figure).draw()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def boxes(figure):
    """Every visible text of a figure that has been drawn, and where it is, in pixels."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in texts]


def rows(updates, judge=True, distance=True):
    first = {"step": 0, "judge/mean": 0.5, "judge/low": 0.4, "judge/high": 0.6}
    found = [first | ({"distance": 0.0} if distance else {})] if judge else []
    for step in range(1, updates + 1):
        row = {"step": step, "reward/mean": step / 100, "reward/std": 0.1, "gradient/norm": None}
        if distance and step % 5 == 0:
            row["distance"] = step / 100
        if judge and step % 5 == 0:
            row |= {"judge/mean": 0.5 + step / 100, "judge/low": 0.4, "judge/high": 1.2}
        found.append(row)
    return found


def evaluation(count, size=(64, 64), prompts=PROMPTS, scores=None):
    chosen = [prompts[i % len(prompts)] for i in range(count)]
    scores = torch.rand(count) * 10 if scores is None else torch.tensor(scores)
    return Evaluation(chosen, list(range(count)), {"judge": scores}, None, torch.rand(count, 3, *size))


# --- reward.png ---


@pytest.mark.parametrize(
    ("updates", "judge", "distance", "panels"),
    [(60, True, True, 3), (60, False, True, 2), (1, False, False, 1), (2, True, False, 2)],
)
def test_reward_plot_has_a_panel_for_all_that_was_measured(tmp_path, drawn, updates, judge, distance, panels):
    plots.plot_reward(rows(updates, judge, distance), tmp_path / "reward.png", "demo", "judge")
    assert len(drawn[0].axes) == panels
    with Image.open(tmp_path / "reward.png") as picture:
        assert picture.format == "PNG"


def test_reward_plot_of_nothing_says_so(tmp_path, drawn):
    plots.plot_reward([], tmp_path / "reward.png")
    assert [text for text, _ in boxes(drawn[0])] == ["nothing measured yet"]


def test_reward_plot_shows_the_means_and_the_intervals(tmp_path, drawn):
    plots.plot_reward(rows(20), tmp_path / "reward.png")
    reward, judge, distance = drawn[0].axes
    dots = next(line for line in reward.lines if line.get_marker() == ".")
    assert dots.get_ydata().tolist() == [step / 100 for step in range(1, 21)]
    assert judge.lines[1].get_xdata().tolist() == [0, 5, 10, 15, 20]
    ends = judge.collections[0].get_segments()
    assert [end[:, 1].round(6).tolist() for end in ends] == [[0.4, 0.6]] + [[0.4, 1.2]] * 4
    assert distance.get_ylim() == (0, 1.05)  # one that hardly moved looks so


def test_titles_of_reward_plot_are_names_and_not_formulas(tmp_path, drawn):
    plots.plot_reward(rows(5), tmp_path / "reward.png", "my $reward_{", "pick score")
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == [
        "training reward: my $reward_{",
        "held-out judge: pick score",
        "distance from the base model (1: other pictures)",
    ]


def test_nothing_of_reward_plot_overlaps_or_is_cut_off(tmp_path, drawn):
    plots.plot_reward(rows(60), tmp_path / "reward.png", "image_reward", "pick_score")
    figure = drawn[0]
    words = [
        (text, box)
        for text, box in boxes(figure)
        if not text.replace(".", "").replace("\u2212", "").isdigit()
    ]
    assert len(words) == 3 + 1 + 3 + 2  # titles, the axis, legends
    assert_apart(figure, words)


def assert_apart(figure, words):
    width, height = figure.canvas.get_width_height()
    for text, box in words:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1, (
            f"{text!r} is cut off"
        )
    for (one, first), (other, second) in itertools.combinations(words, 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), f"{one!r} and {other!r} overlap"


# --- before_after.png ---


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (96, 512), (512, 96)])
@pytest.mark.parametrize("count", quick([1, 2, 4, 5, 8], 2))
def test_nothing_of_before_after_overlaps_or_is_cut_off(tmp_path, drawn, size, count):
    plots.plot_before_after(evaluation(count, size), evaluation(count, size), tmp_path / "ba.png", "judge")
    figure = drawn[0]
    assert len(figure.axes) == 2 * count
    words = boxes(figure)
    # what it shows; caption and two scores each; before and after per row
    assert len(words) == 1 + 3 * count + 2 * -(-count // 4)
    pictures = [("a picture", axes.get_window_extent()) for axes in figure.axes]
    assert_apart(figure, words + pictures)


def test_pictures_stand_before_over_after_under_their_prompt(tmp_path, drawn):
    before, after = evaluation(3), evaluation(3)
    before.images[:], after.images[:] = 0.0, 1.0
    plots.plot_before_after(before, after, tmp_path / "ba.png", "judge")
    for axes in drawn[0].axes[::2]:
        assert (axes.images[0].get_array() == 0).all()
    for upper, lower in zip(drawn[0].axes[::2], drawn[0].axes[1::2], strict=True):
        assert (lower.images[0].get_array() == 255).all()
        assert upper.get_position().x0 == lower.get_position().x0
        assert upper.get_position().y0 > lower.get_position().y0


def test_the_pairs_that_changed_most_come_first_and_the_title_says_so(tmp_path, drawn):
    before, after = evaluation(6, scores=[0.0] * 6), evaluation(6, scores=[0.1, 0.0, -3.0, 1.0, 0.1, 0.0])
    for place in range(6):
        before.images[place] = after.images[place] = place / 10
    after.images[4] += 0.2  # as much of a change to the judge as the first, and more to the eye
    plots.plot_before_after(before, after, tmp_path / "ba.png", "judge", count=4)
    shown = [axes.images[0].get_array()[0, 0, 0] for axes in drawn[0].axes[::2]]
    assert shown == [round(255 * place / 10) for place in (2, 3, 4, 0)]
    title = next(text for text, _ in boxes(drawn[0]) if text.startswith("Same prompts"))
    assert "0 before, -0.3 after" in title.replace("\n", " ") and "Of 6 pairs" in title


def test_tiny_pictures_keep_their_pixels_and_big_ones_are_averaged(tmp_path, drawn):
    plots.plot_before_after(evaluation(1), evaluation(1), tmp_path / "a.png", "judge")
    plots.plot_before_after(evaluation(1, (512, 512)), evaluation(1, (512, 512)), tmp_path / "b.png", "judge")
    assert [figure.axes[0].images[0].get_interpolation() for figure in drawn] == ["nearest", "antialiased"]


def test_scores_are_numbers_and_verdicts_are_ticks_and_crosses(tmp_path, drawn):
    plots.plot_before_after(
        evaluation(2, scores=[0.0, 1.0]), evaluation(2, scores=[6.125, 0.0]), tmp_path / "ba.png", "judge"
    )
    texts = [text for text, _ in boxes(drawn[0]) if text.startswith("judge")]
    assert sorted(texts) == sorted(["judge: \u2717", "judge: \u2713", "judge: 6.12", "judge: 0"])


def test_no_prompt_makes_matplotlib_complain(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.plot_before_after(evaluation(6), evaluation(6), tmp_path / "ba.png", "judge")


# --- grids ---


@pytest.mark.parametrize(
    ("count", "columns", "size"), [(1, None, (1, 1)), (5, None, (3, 2)), (8, 4, (4, 2)), (3, 8, (8, 1))]
)
def test_a_grid_is_as_square_as_it_goes_or_has_the_columns_it_is_told(count, columns, size):
    sheet = images.grid(torch.rand(count, 3, 200, 300), columns)
    assert sheet.size == (size[0] * 304 + 4, size[1] * 204 + 4)


def test_a_grid_puts_every_picture_in_its_place_in_reading_order():
    pictures = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 130, 130)
    sheet = images.grid(pictures, 3)
    for number in range(6):
        row, column = divmod(number, 3)
        expected = round(number / 5 * 255)
        assert sheet.getpixel((4 + column * 134 + 65, 4 + row * 134 + 65)) == (expected,) * 3
    assert sheet.getpixel((1, 1)) == (255, 255, 255)


def test_tiny_pictures_are_enlarged_pixel_by_pixel():
    picture = images.enlarged(images.to_pil(torch.eye(8).expand(3, 8, 8)))
    assert picture.size == (128, 128)
    assert set(picture.getdata()) == {(0, 0, 0), (255, 255, 255)}


def test_pixels_are_rounded_and_clamped_and_of_a_video_the_middle_frame_is_shown():
    video = torch.tensor([0.0, 2.0, -1.0])[:, None, None, None].expand(3, 3, 4, 4)
    assert images.to_pil(video).getpixel((0, 0)) == (255, 255, 255)
    assert images.to_pil(video[2]).getpixel((0, 0)) == (0, 0, 0)
    assert images.to_pil(torch.full((3, 2, 2), 0.4999)).getpixel((0, 0)) == (127, 127, 127)


def test_importing_plots_imports_no_matplotlib_and_drawing_needs_no_display(tmp_path):
    code = (
        "import sys, rlr_core.evaluation.plots as plots\n"
        "assert not {'matplotlib', 'torch'} & set(sys.modules)\n"
        f"plots.plot_reward([{{'step': 1, 'reward/mean': 1.0}}], {str(tmp_path / 'r.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"MPLBACKEND": "tkagg"})
