"""A prompt with metadata is its text to whoever does not ask for more."""

import copy
import json
import pickle

import pytest
import torch

from rlr_core.common.pending import Pending
from rlr_core.common.prompt_text import PromptText, metadata_of
from rlr_core.rewards import load_reward

PROMPT = PromptText('a sign that says "open"', {"words": ["open"], "count": {"sign": 1}})


def test_it_is_equal_to_its_text_and_hashes_like_it():
    assert str(PROMPT) == PROMPT == 'a sign that says "open"'
    assert {PROMPT: 1}[str(PROMPT)] == 1
    assert isinstance(PROMPT, str) and json.loads(json.dumps([PROMPT])) == [str(PROMPT)]
    assert repr(PROMPT) == repr(str(PROMPT))
    assert type(str(PROMPT)) is str


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_and_pickles_keep_the_metadata(copied):
    again = copied(PROMPT)
    assert again == PROMPT and type(again) is PromptText and metadata_of(again) == metadata_of(PROMPT)


def test_a_plain_string_has_no_metadata_and_metadata_cannot_be_changed():
    assert metadata_of("a plain prompt") == {} == metadata_of(PromptText("a prompt"))
    with pytest.raises(TypeError):
        metadata_of(PROMPT)["words"] = []


def test_a_callable_reward_reads_the_metadata_also_inside_others():
    def counts(images, prompts):
        return [float(len(metadata_of(prompt).get("words", ()))) for prompt in prompts]

    images, prompts = torch.rand(2, 3, 8, 8), [PROMPT, "a plain prompt"]
    reward = load_reward(counts)
    assert reward(images, prompts).tolist() == [1, 0]
    combined = load_reward("combine", rewards=[reward, "brightness"], weights=[1, 0], normalize=False)
    assert combined(images, prompts).tolist() == [1, 0]
    video = load_reward("video", reward=reward, frames=2)
    assert video(torch.rand(2, 4, 3, 8, 8), prompts).tolist() == [1, 0]


def test_pending_keeps_its_reason_through_a_pickle():
    pending = pickle.loads(pickle.dumps(Pending("Waiting for a person.")))
    assert pending.reason == str(pending) == "Waiting for a person."
