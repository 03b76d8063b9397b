"""Pairs as they are collected, by clicks or in a table, and the file that becomes of them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from rlr_core.cli.main import main
from rlr_core.errors import UserError
from rlr_core.methods.pair_collection import PairCollection, read_table, save_rows
from rlr_core.methods.pairs import load_pairs


def picture(value: float, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.full((3, height, width), value)


@pytest.fixture
def collection(tmp_path):
    found = PairCollection(tmp_path / "mine")
    for value in (0.2, 0.4, 0.6):
        found.add(picture(value), picture(1 - value), f"prompt {value}")
    return found


def test_every_choice_is_on_the_disk_and_can_be_taken_back(collection):
    first, second, third = (pair.name for pair in collection.pairs())
    collection.choose(first, "left")
    collection.choose(second, "skip")
    collection.choose(third, "right")
    again = PairCollection(collection.folder)
    assert [pair.choice for pair in again.pairs()] == ["left", "skip", "right"]
    again.choose(third, None)
    assert [pair.choice for pair in collection.pairs()] == ["left", "skip", None]
    with pytest.raises(UserError, match="left, right, skip, not 'up'"):
        collection.choose(first, "up")
    with pytest.raises(UserError, match="no pair 'x'"):
        collection.choose("x", "left")


def test_the_same_pair_is_added_once_and_keeps_its_choice(collection):
    collection.choose(collection.pairs()[0].name, "right")
    collection.add(picture(0.2), picture(0.8), "prompt 0.2")
    assert [pair.choice for pair in collection.pairs()] == ["right", None, None]
    collection.add(picture(0.2), picture(0.8), "another prompt")
    assert len(collection.pairs()) == 4


def test_the_file_holds_what_was_decided_the_better_one_first(collection, tmp_path):
    assert collection.save(tmp_path / "none.safetensors") == 0
    assert not (tmp_path / "none.safetensors").exists()
    first, second, third = (pair.name for pair in collection.pairs())
    collection.choose(first, "right")
    collection.choose(second, "skip")
    collection.choose(third, "left")
    assert collection.save(tmp_path / "pairs.safetensors") == 2
    found = load_pairs(tmp_path / "pairs.safetensors")
    assert found.prompts == ["prompt 0.2", "prompt 0.6"]
    assert [int(p[0, 0, 0]) for p in found.preferred] == [204, 153]
    assert [int(p[0, 0, 0]) for p in found.rejected] == [51, 102]


def test_a_damaged_index_is_named(collection):
    (collection.folder / "pairs.json").write_text("[1]")
    with pytest.raises(UserError, match=r"pairs\.json is damaged"):
        collection.pairs()


def table(folder, text):
    for name, size in (("a.png", (20, 33)), ("b.png", (64, 16)), ("c.jpg", (16, 64))):
        Image.new("RGB", size, "red" if name == "a.png" else "blue").save(folder / name)
    (folder / "list.csv").write_text(text)
    return folder / "list.csv"


def test_pictures_of_all_sizes_get_that_of_the_first(tmp_path):
    rows = read_table(table(tmp_path, "preferred,rejected,prompt\na.png,b.png,x\nc.jpg,a.png,y\n"))
    save_rows(rows, tmp_path / "pairs.safetensors")
    found = load_pairs(tmp_path / "pairs.safetensors")
    assert found.preferred.shape == found.rejected.shape == (2, 3, 32, 16)  # 33 x 20, in multiples of 8
    assert found.prompts == ["x", "y"]
    red, blue = found.preferred[0].float().mean((1, 2)), found.rejected[0].float().mean((1, 2))
    assert red[0] > 250 > 5 > red[2] and blue[2] > 250 > 5 > blue[0], "not stretched, not mixed up"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("better,worse\na.png,b.png\n", "must have a first line preferred,rejected,prompt"),
        ("preferred,rejected,prompt\na.png\n", "line 2: preferred,rejected,prompt are not all there"),
        ("", "must have a first line"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_table(table(tmp_path, text))


def test_the_command_makes_the_file_of_a_table_and_of_a_folder(tmp_path, collection, capsys):
    rows = table(tmp_path, "preferred,rejected,prompt\na.png,b.png,x\n")
    out = tmp_path / "out.safetensors"
    assert main(["pairs", str(rows), "--out", str(out)]) == 0
    assert load_pairs(out).prompts == ["x"] and "1 pairs in" in capsys.readouterr().out
    assert main(["pairs", str(collection.folder), "--out", str(out)]) == 2
    assert "No pair in" in capsys.readouterr().err
    collection.choose(collection.pairs()[0].name, "left")
    assert main(["pairs", str(collection.folder), "--out", str(out)]) == 0
    assert load_pairs(out).prompts == ["prompt 0.2"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.csv", "--out", "x.safetensors"], "is no table that can be read"),
        ([".", "--out", "x.safetensors"], r"holds no pairs\.json"),
        (["x.csv", "--out", "x.zip"], r"must end in \.safetensors"),
    ],
)
def test_the_command_refuses_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    import re

    monkeypatch.chdir(tmp_path)
    assert main(["pairs", *arguments]) == 2
    assert re.search(sentence, capsys.readouterr().err)
