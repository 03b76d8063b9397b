"""What the server tells a page about a run: phases in words, time left, and previews only where needed."""

from __future__ import annotations

import sys

import pytest
import torch
from comfy_process import output_of
from test_nodes import TRAIN

LIVE = "custom_nodes_ComfyUI-RLR.nodes.live"


@pytest.fixture
def told(pack, monkeypatch):
    """Every event of the live view that is sent."""
    live = sys.modules[LIVE]
    events = []
    monkeypatch.setattr(live.host, "send", lambda kind, data: events.append(dict(data)))
    monkeypatch.setattr(live, "PAUSE", 0.0)
    return events


@pytest.fixture
def previews(pack, monkeypatch):
    """Preview pictures of the progress bar, and the shares that it showed."""
    live = sys.modules[LIVE]
    shown = []
    monkeypatch.setattr(
        live.host.Progress, "show_share", lambda bar, share, preview=None: shown.append((share, preview))
    )
    return shown


def test_a_run_tells_its_phases_in_words_from_loading_to_saving(run, sockets_of, told, previews):
    run("RLR_Train", run_name="words", **sockets_of, **TRAIN)
    phases = list(dict.fromkeys(event["phase"] for event in told if event.get("phase")))
    beginnings = ["loading the model", "encoding prompts", "evaluating pictures 1 to", "sampling picture",
                  "learning, ", "saving"]  # fmt: skip
    places = [next(i for i, phase in enumerate(phases) if phase.startswith(words)) for words in beginnings]
    assert places == sorted(places)
    assert told[0]["state"] == "running" and told[0]["steps"] == 2 and told[0]["step"] == 0
    assert told[-1]["state"] == "finished"
    assert any(event.get("left") for event in told)
    assert all(event["seconds"] >= 0 for event in told)


def test_the_bar_moves_to_its_end(run, sockets_of, told, previews):
    run("RLR_Train", run_name="bar", **sockets_of, **TRAIN)
    shares = [share for share, _ in previews]
    assert shares[-1] == 1 and max(shares) <= 1 and len(set(shares)) > 10


@pytest.mark.parametrize("has_view", [False, True])
def test_previews_go_to_pages_without_the_view_only(run, sockets_of, told, previews, monkeypatch, has_view):
    live = sys.modules[LIVE]

    class Server:
        client_id = "page 1"

    monkeypatch.setattr(live.host.PromptServer, "instance", Server(), raising=False)
    monkeypatch.setattr(live, "_pages", type(live._pages)())
    live.seen("another page")
    if has_view:
        live.seen("page 1")
    run("RLR_Train", run_name=f"preview_{has_view}", **sockets_of, **TRAIN)
    assert any(preview is not None for _, preview in previews) != has_view


def test_what_is_told_too_soon_is_told_a_little_later(pack, monkeypatch, tmp_path):
    from rlr_core.config import TrainConfig
    from rlr_core.training.events import Event

    live = sys.modules[LIVE]
    told, timers = [], []

    class Timer:
        daemon = False

        def __init__(self, seconds, function):
            timers.append(function)

        def start(self):
            pass

        def cancel(self):
            pass

    monkeypatch.setattr(live.host, "send", lambda kind, data: told.append(dict(data)))
    monkeypatch.setattr(live.threading, "Timer", Timer)
    view = live.Live(tmp_path, "5", "w", TrainConfig(prompts=["a cat"]))
    for done in (0, 1):
        view(Event("progress", {"phase": "reward", "done": done, "total": 2}))  # the second waits
    assert len(timers) == 1 and told[-1]["phase"] != "scoring, 1 of 2 pictures"
    timers[0]()
    assert told[-1]["phase"] == "scoring, 1 of 2 pictures"


def test_scores_come_with_their_pictures(run, pack):
    (reward,) = run("RLR_Reward", reward="brightness")
    pictures = torch.linspace(0, 1, 3)[:, None, None, None].expand(3, 8, 8, 3)
    shown = output_of(pack, "RLR_ScoreImages", images=pictures, reward=reward).ui
    assert [picture["text"] for picture in shown["rlr_scores"]] == ["1", "0.5", "0"]
    assert all(picture["image"].startswith("data:image/jpeg;base64,") for picture in shown["rlr_scores"])
