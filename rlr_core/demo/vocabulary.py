"""The demo's tokenizer: a `CLIPTokenizer` for which every word of the scenes' captions is one token."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from .scenes import COLORS, KINDS

LENGTH = 12  # tokens of a prompt: begin, at most ten words, end
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
WORDS = ("a", *COLORS, *KINDS, "above", "below", "left", "right", "of")


def write_tokenizer(folder: Path) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json: what `CLIPTokenizer.from_pretrained` reads.

    Words that are not of the world are spelt letter by letter, cut at twelve tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = _merges()
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), *(a + b for a, b in merges), BEGIN, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=0) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _merges() -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until each word is one token."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    merges = []
    while True:
        pairs = Counter(pair for word in spelled for pair in zip(word, word[1:], strict=False))
        if not pairs:
            return merges
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in word:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
