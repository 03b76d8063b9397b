"""CLIP's tokenizer, built from the byte-pair table that open_clip ships: nothing to download."""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rlr_core.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TABLE = "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # the part of the table that CLIP uses


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """The tokenizer of every CLIP text encoder, 77 tokens. Raises UserError without open_clip."""
    from transformers import CLIPTokenizer

    spec = importlib.util.find_spec("open_clip")
    table = Path(spec.origin).parent / TABLE if spec and spec.origin else None
    if table is None or not table.is_file():
        raise UserError("A checkpoint file needs CLIP's tokenizer, which open_clip_torch brings: install it.")
    merges = gzip.decompress(table.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += [START, END]
    with tempfile.TemporaryDirectory() as folder:  # the only form that every version of transformers reads
        vocabulary = {token: index for index, token in enumerate(tokens)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
        Path(folder, "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, **special}))
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, in the table's order: printable bytes first, as themselves."""
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [chr(code) for first, last in ranges for code in range(ord(first), ord(last) + 1)]
    return printable + [chr(256 + n) for n in range(256 - len(printable))]
