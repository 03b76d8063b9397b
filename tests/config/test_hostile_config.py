"""Damaged and hostile config files load, or are refused in one sentence."""

import os
import random

import pytest
from every_setting import every_setting

from rlr_core.config import load_config, save_config
from rlr_core.config.validate import check_values
from rlr_core.errors import UserError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 5000, "nested too deeply|is not YAML"),
        ("prompts: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("prompts: &a [*a]", "nested too deeply"),
        ("sampler: &a {steps: *a}", "nested too deeply"),
        ("<<: &a [*a]", "not YAML|nested too deeply"),
        (LAUGHS, "more than 200,000 values"),
        ("out: 2024-13-45", "is not YAML: month must be in 1..12"),
        ("out: 2024-01-01 99:00:00", "is not YAML"),
        ("steps: !!int ''", "is not YAML"),
        ("steps: !!float much", "is not YAML"),
        ("steps: !!bool maybe", "is not YAML"),
        ("out: !!timestamp today", "is not YAML"),
        ("out: !!binary aGVsbG8=", "binary data"),
        ("out: !unheard of", "is not YAML"),
        ("seed: 1" + "0" * 5000, "is not YAML"),
        ("? {a: 1}\n: 2", "is not YAML"),
        ('out: "a\\0b"', "is not text"),
        ('out: "a\\ud800b"', "is not text"),
        ("<<: 3", "is not YAML"),
        ("out: 2024-01-01", "out must be text, not datetime.date"),
    ],
)
def test_hostile_yaml_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        load_config(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2500


def test_files_that_cannot_be_configs_are_refused_unread(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"#" * (10 * 2**20))
    with pytest.raises(UserError, match=r"too large to be a config: 10,485,760 bytes, at most"):
        load_config(path)
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("/dev/zero", tmp_path / "pipe.yaml"):
        with pytest.raises(UserError, match="it is not an ordinary file"):
            load_config(name)
    with pytest.raises(UserError, match="Cannot read the config"):
        load_config("a\0b.yaml")


@pytest.mark.slow
def test_damaged_configs_load_or_are_one_sentence(tmp_path):
    """A valid file with random bytes changed, doubled, cut out or put in; what loads can be saved again."""
    whole = save_config(every_setting().replace(batch=16, samples_per_prompt=4)).encode()
    pieces = rb'&a *a [ ] { } !!int !!python/name:os <<: % 2024-02-30 1:60:60 .nan | "\ud800"'.split()
    pieces += [b": ", b"- ", b"? ", b"\n", b"\t", b"\xff", b"\x00"]
    rng, loaded = random.Random(0), 0
    path = tmp_path / "run.yaml"
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            change = rng.randrange(4)
            if change == 0:
                data[at : at + rng.randint(1, 30)] = b""
            elif change == 1:
                data[at:at] = rng.choice(pieces)
            elif change == 2:
                data[at] = rng.randrange(256)
            else:
                data[at:at] = data[at : at + rng.randint(1, 60)]
        path.write_bytes(data)
        try:
            config = load_config(path)
            check_values(config)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            loaded += 1
            path.write_text(save_config(config), encoding="utf-8")
            assert load_config(path) == config
    assert 0 < loaded < 300
