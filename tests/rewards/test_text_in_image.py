"""Readable words: right spelling scores above wrong, letter by letter, and nothing is fetched for it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference.drawn_text import draw, misspelled
from tiny_flow import TinyFlow

from rlr_core.common.prompt_text import PromptText
from rlr_core.config import config_from_dict, load_config
from rlr_core.errors import UserError
from rlr_core.rewards import load_reward, reward_class
from rlr_core.rewards.text_in_image import edit_distance, letter_errors, wanted_texts
from rlr_core.training.trainer import train


@pytest.fixture(scope="module")
def reward():
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    return load_reward("text_in_image")


@pytest.mark.parametrize(
    "prompt, texts",
    [
        ('a sign that says "Open Daily"', ["opendaily"]),
        ("a sign, “HELLO” and «welt»", ["hello", "welt"]),
        ("a neon sign 'Joe's' at night", ["joe's"]),
        ("the dog's bowl says 'Rex'", ["rex"]),
        (PromptText("a cat", {"text": ["Cat", "Dog 1"]}), ["cat", "dog1"]),
        (PromptText('a "cat"', {"text": "mouse"}), ["mouse"]),
    ],
)
def test_the_text_is_what_the_prompt_quotes_or_its_metadata_says(prompt, texts):
    assert wanted_texts(prompt) == texts


def test_a_prompt_without_a_text_is_refused_before_the_run(reward):
    with pytest.raises(UserError, match="'a cat' says no text to be read; put it in quotes"):
        reward.prepare(['a "sign"', "a cat"])
    with pytest.raises(UserError, match="metadata `text` of prompt 'a cat' must be a text or a list"):
        reward.prepare([PromptText("a cat", {"text": 3})])


def test_edit_distance_counts_letters():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


def test_words_around_the_text_cost_nothing_and_letters_too_many_in_it_do():
    assert letter_errors("opendaily", ["we", "are", "open", "daily", "here"]) == 0
    assert letter_errors("open", ["openn"]) == 1
    assert letter_errors("open", ["we", "oqen"]) == 1
    assert letter_errors("open", []) == letter_errors("open", ["xxxxxxxxxxxxxxxx"]) == 4


def test_a_right_word_scores_1_and_each_wrong_letter_costs_its_share(reward):
    word = "BIRTHDAY"
    pictures = torch.stack([draw(misspelled(word, wrong)) for wrong in (0, 1, 2, 4, 8)])
    scores = reward(pictures, ['a cake that says "Birthday"'] * 5).tolist()
    assert scores[0] == 1.0
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5
    assert scores[1] == pytest.approx(7 / 8, abs=1e-6)  # the OCR reads what is there, not what is likely


def test_texts_are_found_in_lines_and_in_small_pictures_and_no_text_scores_0(reward):
    two = draw("HAPPY\nBIRTHDAY", size=512)
    small = draw("cafe", size=96)
    empty = torch.full((1, 3, 64, 64), 0.5)
    assert reward(two[None], ['"Happy Birthday"']).item() == 1.0
    assert reward(small[None], ['"Cafe"']).item() == 1.0
    assert reward(empty, ['"Cafe"']).item() == 0.0


def test_it_reads_with_every_socket_blocked():
    pytest.importorskip("rapidocr")
    code = """if True:
        import socket
        def refuse(*_, **__): raise AssertionError("a socket was opened")
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        from reference.drawn_text import draw
        from rlr_core.rewards import load_reward
        print(load_reward("text_in_image")(draw("OPEN")[None], ['"open"']).item())
    """
    tests = str(Path(__file__).parents[1])
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tests}:{Path(tests).parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == "1.0", out.stderr


def test_what_to_install_is_said_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="'text_in_image' needs .*: pip install rapidocr onnxruntime"):
        load_reward("text_in_image")
    assert reward_class("text_in_image").extra.missing() == "pip install rapidocr onnxruntime"


@pytest.mark.slow
def test_a_model_trains_on_it_with_the_prompts_that_come_along(reward, tmp_path):
    settings = {"prompts": "readable_text", "steps": 1, "batch": 4, "samples_per_prompt": 4}
    settings |= {"method": {"name": "awm"}, "sampler": {"steps": 2}, "out": str(tmp_path / "run")}
    held_out = {"prompts": "readable_text_held_out", "samples": 2}
    config = config_from_dict(settings | {"evaluation": held_out})
    result = train(TinyFlow(), reward, config)
    assert result.before.estimate("reward").mean == 0.0  # an untrained toy writes nothing
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert len(saved.prompts) == 40 and len(saved.evaluation.prompts) == 16
