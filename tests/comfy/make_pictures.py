"""Make the pictures of the workflows: run them in ComfyUI and Chromium, and look at what came out.

    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python tests/comfy/make_pictures.py [name ...]

workflows/<name>.jpg is what the Templates browser shows, rlr-demo-run.jpg the page after the demo's run. The
workflows on the built-in model are run as they are, which takes minutes each; the others need weights that
do not come with the repository, and their pictures show the graph.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from browser import fit, load, page_on, queue_and_wait  # noqa: E402
from comfy_server import ROOT, ComfyServer, make_base  # noqa: E402
from make_workflows import LAYOUT  # noqa: E402

SIDE = 640
"""Of a picture in the Templates browser, which shows squares."""
GAP = 8
PAPER, INK = "#17181c", "#e8e8e8"


def main(names: list[str]) -> None:
    """Make the pictures of these workflows, or of all."""
    comfyui = Path(os.environ["COMFYUI_PATH"]).expanduser()
    with tempfile.TemporaryDirectory() as scratch:
        base = make_base(Path(scratch) / "base")
        (base / "models/checkpoints/v1-5-pruned-emaonly-fp16.safetensors").touch()
        with ComfyServer(comfyui, base) as server, page_on(server, Path(scratch) / "p") as page:
            for name in names or LAYOUT:
                make(page, name, base / "output/rlr")


def make(page: Any, name: str, runs: Path) -> None:
    """workflows/<name>.jpg."""
    target = ROOT / "workflows" / f"{name}.jpg"
    load(page, json.loads(target.with_suffix(".json").read_text(encoding="utf-8")), name)
    if "v1-5" in (HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"):
        save(square(screenshot(page)), target)
        return
    started = time.monotonic()
    end = queue_and_wait(page, 1800)
    if end["kind"] != "execution_success":
        raise RuntimeError(f"{name} did not succeed: {end}")
    print(f"{name}: {time.monotonic() - started:.0f} s")
    page.wait_for_timeout(3000)
    if name == "rlr-demo":
        save(screenshot(page), target.with_name("rlr-demo-run.jpg"))
    if name == "rlr-compare-methods":
        save(charts(sorted(runs.glob("compare-*"))), target)
    else:
        save(before_and_after(runs / name), target)


def screenshot(page: Any) -> Any:
    """The page with the whole graph in view, as a PIL picture."""
    from PIL import Image

    fit(page)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        page.screenshot(path=path)
        return Image.open(path).convert("RGB")


def square(picture: Any) -> Any:
    """The middle of a page, without its menus, as a square."""
    width, height = picture.size
    inner = picture.crop((60, 50, width, height))
    inner.thumbnail((SIDE, SIDE))
    sheet = blank()
    sheet.paste(inner, ((SIDE - inner.width) // 2, (SIDE - inner.height) // 2))
    return sheet


def before_and_after(run: Path) -> Any:
    """A run's samples: those before on the left, those after on the right."""
    from PIL import Image

    samples = sorted((run / "samples").glob("step_*.png"))
    sheet, place = blank(), heading(("before", "after"))
    sheet.paste(place, (0, 0))
    wide = (SIDE - 3 * GAP) // 2
    for column, path in enumerate((samples[0], samples[-1])):
        with Image.open(path) as found:
            picture = found.convert("RGB")
        scale = min(wide / picture.width, (SIDE - place.height - GAP) / picture.height)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.NEAREST)
        top = place.height + (SIDE - place.height - picture.height) // 2
        sheet.paste(picture, (GAP + column * (wide + GAP) + (wide - picture.width) // 2, top))
    return sheet


def charts(runs: list[Path]) -> Any:
    """The charts of runs side by side, under their names."""
    from PIL import Image

    sheet, place = blank(), heading([run.name.removeprefix("compare-") for run in runs])
    sheet.paste(place, (0, 0))
    wide = (SIDE - (len(runs) + 1) * GAP) // len(runs)
    for column, run in enumerate(runs):
        with Image.open(run / "reward.png") as found:
            picture = found.convert("RGB")
        picture = picture.resize((wide, round(picture.height * wide / picture.width)), Image.LANCZOS)
        sheet.paste(picture, (GAP + column * (wide + GAP), (SIDE - picture.height + place.height) // 2))
    return sheet


def heading(words: Any) -> Any:
    """A line with a word over each column."""
    from PIL import Image, ImageDraw, ImageFont

    line = Image.new("RGB", (SIDE, 56), PAPER)
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(28)
    for column, word in enumerate(words):
        draw.text(((column + 0.5) * SIDE / len(words), 28), word, fill=INK, font=font, anchor="mm")
    return line


def blank() -> Any:
    """An empty square."""
    from PIL import Image

    return Image.new("RGB", (SIDE, SIDE), PAPER)


def save(picture: Any, path: Path) -> None:
    """A JPEG."""
    picture.save(path, "JPEG", quality=85, optimize=True)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
