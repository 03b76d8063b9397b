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
from make_workflows import LAYOUT, touch_models  # noqa: E402

SIDE = 640
"""Of a picture in the Templates browser, which shows squares."""


def main(names: list[str]) -> None:
    """Make the pictures of these workflows, or of all."""
    comfyui = Path(os.environ["COMFYUI_PATH"]).expanduser()
    with tempfile.TemporaryDirectory() as scratch:
        base = make_base(Path(scratch) / "base")
        touch_models(base)
        with ComfyServer(comfyui, base) as server, page_on(server, Path(scratch) / "p") as page:
            for name in names or LAYOUT:
                make(page, name, base / "output/rlr")


def make(page: Any, name: str, runs: Path) -> None:
    """workflows/<name>.jpg."""
    target = ROOT / "workflows" / f"{name}.jpg"
    load(page, json.loads(target.with_suffix(".json").read_text(encoding="utf-8")), name)
    if "demo (built in)" not in (HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"):
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
    if name == "rlr-rate":
        mark(page)
        save(square(screenshot(page)), target)
    elif name == "rlr-compare-methods":
        save(charts(sorted(runs.glob("compare-*"))), target)
    else:
        save(before_and_after(runs / name), target)


def mark(page: Any) -> None:
    """Click some of the pictures that wait to be rated."""
    fit(page)
    for place, clicks in ((0, 1), (2, 2), (5, 1), (7, 2), (8, 2), (11, 1), (14, 1)):
        for _ in range(clicks):
            page.locator(".rlr-tile").nth(place).click()
    page.wait_for_timeout(1000)


def screenshot(page: Any) -> Any:
    """The page with the whole graph in view, as a PIL picture."""
    from PIL import Image

    fit(page)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        page.screenshot(path=path)
        return Image.open(path).convert("RGB")


def square(picture: Any) -> Any:
    """A page without its menus, cut to a square."""
    width, height = picture.size
    side, left = height - 60, (width - height) // 3
    return picture.crop((left, 60, left + side, 60 + side)).resize((SIDE, SIDE))


def before_and_after(run: Path) -> Any:
    """A run's before_after.png in a square."""
    from PIL import Image

    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    with Image.open(run / "before_after.png") as found:
        picture = found.convert("RGB")
    picture.thumbnail((SIDE, SIDE), Image.LANCZOS)
    sheet.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return sheet


def charts(runs: list[Path]) -> Any:
    """The charts of runs side by side, under their names."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    heading = ImageFont.load_default(26)
    wide = SIDE // len(runs)
    for column, run in enumerate(runs):
        with Image.open(run / "reward.png") as found:
            picture = found.convert("RGB")
        picture = picture.resize((wide, round(picture.height * wide / picture.width)), Image.LANCZOS)
        top = (SIDE - picture.height) // 2
        sheet.paste(picture, (column * wide, top))
        place = ((column + 0.5) * wide, top - 24)
        ImageDraw.Draw(sheet).text(
            place, run.name.removeprefix("compare-"), fill="black", font=heading, anchor="mm"
        )
    return sheet


def save(picture: Any, path: Path) -> None:
    """A JPEG."""
    picture.save(path, "JPEG", quality=85, optimize=True)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
