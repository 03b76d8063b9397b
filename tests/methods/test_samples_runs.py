"""Runs of the methods that learn from finished pictures: they learn, and go on bit-equal."""

from __future__ import annotations

import pytest
from marks import quick
from runs import rows, run, small_config

from rlr_core.methods import METHODS

VARIANTS = {
    "nft": {"snapshot_decay": 0.5},
    "awm": {"inner_steps": 2},
    "dpo": {"kl_weight": 0.01},
    "graft": {"buffer": 20, "sample_from": "current"},
    "p_graft": {"buffer": 4, "sample_from": "base"},
    "reward_weighted": {"advantage": "running_mean"},
    "d3po": {},
}


def test_every_variant_is_a_method():
    assert set(VARIANTS) <= set(METHODS)


@pytest.mark.parametrize("name", quick(VARIANTS, "nft"))
def test_interrupted_run_goes_on_bit_equal(name, tmp_path):
    def settings(out):
        method = {"name": name, **VARIANTS[name]}
        return small_config(tmp_path / out, method=method, batch=4, steps=4, save_every=100)

    run(settings("whole"), "black box")
    seen = 0

    def on_event(event):
        nonlocal seen
        seen += event.kind == "progress" and event.data["phase"] in ("rollout", "backward")
        if seen == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings("broken"), "black box", on_event=on_event)
    run(settings("broken"), "black box", resume=True)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    lora = [(tmp_path / out / "lora.safetensors").read_bytes() for out in ("broken", "whole")]
    assert lora[0] == lora[1]


@pytest.mark.parametrize("name", quick(["nft", "awm", "dpo"], "nft"))
def test_a_deterministic_sampler_and_a_black_box_are_enough_to_learn(name, tmp_path):
    settings = small_config(
        tmp_path / "run",
        method={"name": name, "dpo_beta": 20.0},
        sampler={"steps": 3, "eta": 0.0, "guidance": 1.0},
        steps=25,
        batch=16,
        samples_per_prompt=4,
        micro_batch=16,
        optimizer={"learning_rate": 1e-2, "ema_decay": 0.0},
        evaluation={"samples": 64, "every": 25, "batch": 64},
    )
    result = run(settings, "black box")
    gain = result.after.scores["reward"] - result.before.scores["reward"]
    assert float(gain.mean() / (gain.std() / len(gain) ** 0.5)) > 4
