"""Prompts of a config: plain, in stages, with metadata; in lists and in files."""

from __future__ import annotations

import json

import pytest
from runs import small_config
from tiny_flow import TinyFlow

from rlr_core.common.prompt_text import metadata_of
from rlr_core.config import TrainConfig, config_from_dict, load_config
from rlr_core.config.prompts import prompt_sets, read_prompts, with_prompts_read
from rlr_core.errors import UserError
from rlr_core.rewards.text_in_image import wanted_texts
from rlr_core.training.trainer import train

SIGN = {"prompt": "a sign that says OPEN", "metadata": {"words": ["OPEN"]}}


def test_metadata_stands_beside_the_text():
    sign, plain = read_prompts([SIGN, "a cat"])
    assert (sign.text, sign.stages) == ("a sign that says OPEN", ("a sign that says OPEN",))
    assert metadata_of(sign.text) == {"words": ["OPEN"]} and not metadata_of(plain.text)
    assert read_prompts([sign.to_dict()]) == [sign]


def test_prompts_of_one_text_and_other_metadata_are_two():
    other = SIGN | {"metadata": {"words": ["CLOSED"]}}
    assert len(set(read_prompts([SIGN, other, SIGN]))) == 2


def test_a_jsonl_file_holds_an_item_a_line(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{json.dumps(SIGN)}\n\n"a cat"\n')
    assert [prompt.text for prompt in read_prompts(file)] == ["a sign that says OPEN", "a cat"]
    assert with_prompts_read(TrainConfig(prompts=file)).prompts == [SIGN, "a cat"]
    file.write_text('{"prompt": \n')
    with pytest.raises(UserError, match="Line 1 of .* is not JSON"):
        read_prompts(file)


@pytest.mark.parametrize("metadata", ["words", 3, {"words": {1, 2}}, {"x": object()}])
def test_metadata_that_a_file_cannot_hold_is_refused(metadata):
    with pytest.raises(UserError, match="The metadata of prompt 'a cat'"):
        read_prompts([{"prompt": "a cat", "metadata": metadata}])


def test_a_reward_reads_the_metadata_of_the_pictures_it_scores(tmp_path):
    seen = set()

    def readable(images, prompts):
        for prompt in prompts:
            seen.add((str(prompt), json.dumps(dict(metadata_of(prompt)))))
        return images.mean((1, 2, 3))

    settings = small_config(tmp_path / "run", steps=2, prompts=[SIGN, "a cat"])
    train(TinyFlow(), readable, config_from_dict(settings))
    assert seen >= {("a sign that says OPEN", '{"words": ["OPEN"]}'), ("a cat", "{}")}
    assert load_config(tmp_path / "run/config.yaml").prompts == [SIGN, "a cat"]


def test_a_set_that_comes_along_is_named_like_a_file_and_a_file_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = read_prompts("readable_text")
    assert [p.text for p in named] == prompt_sets()["readable_text"] and len(named) == 40
    (tmp_path / "readable_text").write_text("my own\n")
    assert [p.text for p in read_prompts("readable_text")] == ["my own"]
    for missing in ("readable_texts", "readable_text.txt", "./no/readable_text", "../prompts/readable_text"):
        with pytest.raises(UserError, match="Cannot read the prompt file"):
            read_prompts(missing)


def test_every_prompt_of_the_sets_quotes_a_text_and_none_is_in_two():
    sets = prompt_sets()
    everything = [prompt for prompts in sets.values() for prompt in prompts]
    assert len(set(everything)) == len(everything)
    texts = {prompt: tuple(wanted_texts(prompt)) for prompt in everything}
    assert len(set(texts.values())) == len(everything)
    assert set(sets) == {"readable_text", "readable_text_held_out"}
