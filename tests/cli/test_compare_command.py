"""`rlr compare` on the built-in model: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image

from rlr_core.cli.compare import short_names, variants
from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError
from rlr_core.lora.attach import attach

QUICK = ("sampler.steps=2", "evaluation.samples=6")


@pytest.fixture
def lora(here):
    adapter = attach(load_model("demo"), rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapter.save(here / "mine.safetensors")


def test_it_writes_a_grid_a_table_and_every_score(rlr, here, lora):
    code, out, _ = rlr("compare", *QUICK, "--lora", lora, "--judge", "judge", "--out", "found")
    assert code == 0
    assert "wins" in out and "against 'base'" in out and "mine" in out
    lines = (here / "found/table.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| demo", "base"], ["| demo", "mine"], ["| judge", "base"], ["| judge", "mine"],
    ]  # fmt: skip
    rows = list(csv.DictReader((here / "found/scores.csv").open()))
    assert len(rows) == 12 and set(rows[0]) == {"of", "prompt", "seed", "demo", "judge"}
    assert [r["seed"] for r in rows[:6]] == [r["seed"] for r in rows[6:]]
    assert Image.open(here / "found/grid.png").width > 300


def test_strength_0_is_the_model_without_the_lora(rlr, here, lora):
    code, out, _ = rlr("compare", *QUICK, "--lora", lora, "--strengths", 0, 0.5, 1, "--out", "found")
    assert code == 0
    rows = list(csv.DictReader((here / "found/scores.csv").open()))
    names = list(dict.fromkeys(row["of"] for row in rows))
    assert names == ["base", "mine at 0.5", "mine at 1"]
    scores = {name: [row["demo"] for row in rows if row["of"] == name] for name in names}
    assert scores["base"] != scores["mine at 0.5"] != scores["mine at 1"]


def test_several_loras_are_told_apart_by_their_paths(tmp_path):
    for name in ("a/lora", "b/lora"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.safetensors").touch()
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("a/lora", "b/lora")]
    assert list(short_names(paths)) == ["a/lora", "b/lora"]
    assert [v.name for v in variants(paths, None)] == ["a/lora", "b/lora"]
    assert [v.name for v in variants(paths, [0, 1])] == ["base", "a/lora at 1", "b/lora at 1"]
    with pytest.raises(UserError, match="names a file twice"):
        variants([paths[0]] * 2, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lora", "no.safetensors"), "There is no LoRA file 'no.safetensors'"),
        (("--lora", "mine.safetensors", "--strengths", "1"), "takes two or more, not 1"),
        (("--lora", "mine.safetensors", "--strengths", "1", "1"), "takes two or more, not 1"),
        (("--lora", "mine.safetensors", "--strengths", "nan", "1"), "--strengths are numbers"),
        (("--lora", "mine.safetensors", "--out", "prompts.txt"), "'prompts.txt' is a file"),
        ((), "required: --lora"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(rlr, lora, arguments, message):
    code, _, err = rlr("compare", *QUICK, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
