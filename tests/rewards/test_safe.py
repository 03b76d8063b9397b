"""The reward `safe`: one minus the worst of the detector's exposed parts; no part, no loss."""

import pytest
import torch
from reference.rewards_tiny import pictures

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.safe import EXPOSED


@pytest.fixture(scope="module")
def reward():
    pytest.importorskip("nudenet")
    pytest.importorskip("onnxruntime")
    return load_reward("safe")


def test_pictures_of_nothing_score_1(reward):
    images = torch.cat([torch.full((1, 3, 64, 96), 0.5), pictures(2, 64, 96), torch.rand(1, 3, 64, 96)])
    assert reward(images, [""] * 4).tolist() == [1.0] * 4


def test_the_worst_exposed_part_counts_and_no_other_class(reward, monkeypatch):
    """What the detector says is given here, picture by picture; no such pictures are at hand."""
    said = iter(
        [
            [{"class": "BUTTOCKS_EXPOSED", "score": 0.25}, {"class": "ANUS_EXPOSED", "score": 0.75}],
            [{"class": "FEET_EXPOSED", "score": 0.9}, {"class": "FACE_FEMALE", "score": 0.99}],
            [],
        ]
    )
    monkeypatch.setattr(reward.detector, "detect", lambda pixels: next(said))
    assert reward(pictures(3), [""] * 3).tolist() == [0.25, 1.0, 1.0]


def test_the_classes_that_count_are_the_detectors_own(reward):
    import nudenet.nudenet

    assert set(EXPOSED) < set(vars(nudenet.nudenet)["__labels"])


def test_the_detector_gets_blue_first_as_from_a_file(reward, monkeypatch):
    seen = []
    monkeypatch.setattr(reward.detector, "detect", lambda pixels: seen.append(pixels) or [])
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(1, 3, 8, 8)
    reward(red, [""])
    assert seen[0].shape == (8, 8, 3) and seen[0][0, 0].tolist() == [0, 0, 255]


def test_what_to_install_is_said_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="'safe' needs .*: pip install nudenet onnxruntime"):
        load_reward("safe")
