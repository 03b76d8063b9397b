"""Pictures of text drawn by code, right and misspelled; run to see the OCR reward fall with every letter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

WRONG = {"from": "ABDEGHIKLMNOPRSTUVY", "to": "XKWQZFTXJHUGFBLJYXX"}
"""Letters and others that no reader would take for them."""


def draw(text: str, size: int = 384, ink: tuple[int, ...] = (20, 20, 60)) -> Tensor:
    """A picture [3, size, size] in [0, 1] of dark text on a light sky, as large as fits."""
    import matplotlib
    import numpy
    from PIL import Image, ImageDraw, ImageFont

    font = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"
    picture = Image.new("RGB", (size, size), (200, 220, 240))
    canvas = ImageDraw.Draw(picture)
    lines = text.split("\n")
    points = round(1.2 * size / max(map(len, lines)))
    canvas.text((size / 2, size / 2), text, font=ImageFont.truetype(str(font), points), fill=ink, anchor="mm")
    return torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 255).permute(2, 0, 1)


def misspelled(word: str, wrong: int) -> str:
    """The word with its first, last, second, last but one, ... letter exchanged."""
    order = [
        place for pair in zip(range(len(word)), reversed(range(len(word))), strict=True) for place in pair
    ]
    places = [place for place in dict.fromkeys(order) if word[place] != " "][:wrong]
    swap = str.maketrans(WRONG["from"], WRONG["to"])
    return "".join(c.translate(swap) if place in places else c for place, c in enumerate(word))


WORDS = ("BIRTHDAY", "LIBRARY", "OPEN DAILY", "HAND MADE", "RAILWAY", "THE END")


def table(words=WORDS, most: int = 5) -> str:
    """Mean score of `text_in_image` by the number of wrong letters, beside what the letters alone say."""
    from rlr_core.rewards import load_reward

    reward = load_reward("text_in_image")
    rows = ["| wrong letters | mean score | lowest | highest | 1 - wrong/letters |", "|-|-|-|-|-|"]
    for wrong in range(most + 1):
        pictures = torch.stack([draw(misspelled(word, wrong)) for word in words])
        scores = reward(pictures, [f'a sign that says "{word}"' for word in words])
        exact = sum(1 - wrong / len(word.replace(" ", "")) for word in words) / len(words)
        lowest, highest = scores.min().item(), scores.max().item()
        rows.append(f"| {wrong} | {scores.mean().item():.3f} | {lowest:.3f} | {highest:.3f} | {exact:.3f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
