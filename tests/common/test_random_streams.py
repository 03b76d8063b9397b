"""Random streams are functions of seed, name and counters, and no two of them share numbers."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from runs import redness, small_config
from tiny_flow import TinyFlow

from rlr_core.common import random_streams
from rlr_core.common.random_streams import seeds, stream, torch_stream
from rlr_core.config import config_from_dict
from rlr_core.training.trainer import Trainer


def test_a_stream_is_the_same_whenever_it_is_asked_for():
    assert np.array_equal(stream(3, "plan", 5).random(8), stream(3, "plan", 5).random(8))
    assert np.array_equal(seeds(3, "noise", 4, 5), seeds(3, "noise", 4, 5))
    a, b = (torch.randn(4, generator=torch_stream(3, "spread")) for _ in range(2))
    assert torch.equal(a, b)


def test_streams_differ_in_seed_name_counters_and_their_number():
    keys = [
        (seed, name, counters)
        for seed, name in itertools.product((0, 1, 2**32, 2**63 - 1), ("noise", "plan", "prompts"))
        for counters in ((), (0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (2**32,))
    ]
    firsts = {seeds(seed, name, 2, *counters).tobytes() for seed, name, counters in keys}
    assert len(firsts) == len(keys)


def test_what_a_run_draws_comes_from_streams_that_never_meet(tmp_path, monkeypatch):
    """The plan of update 3 is not the prompt shuffle of epoch 1, nor the noise of update 0 the plan of 2."""
    drawn = {}
    original = random_streams._sequence

    def noted(seed, name, counters):
        sequence = original(seed, name, counters)
        drawn[(name, counters)] = sequence.generate_state(4, np.uint64).tobytes()
        return sequence

    monkeypatch.setattr(random_streams, "_sequence", noted)
    settings = small_config(tmp_path / "run", method={"name": "rlr", "perturbations": 2})
    trainer = Trainer(TinyFlow(), redness, config_from_dict(settings))
    trainer.prepare()
    for _ in range(8):
        trainer.update()
    names = {name for name, _ in drawn}
    assert names >= {"noise", "plan", "prompts", "perturbation", "evaluation"}
    assert len(set(drawn.values())) == len(drawn) > 30
