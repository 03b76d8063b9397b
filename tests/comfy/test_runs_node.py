"""RLR Runs: what earlier runs have left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from comfy_process import output_of

SMALL = {
    "steps": 2, "batch": 4, "samples_per_prompt": 2, "sampler_steps": 3, "guidance": 2.0, "rank": 2,
    "learning_rate": 3e-3, "ema_decay": 0.0, "evaluate_every": 1, "evaluation_samples": 4,
}  # fmt: skip


@pytest.fixture
def module(pack):
    return sys.modules["custom_nodes_ComfyUI-RLR.nodes.runs"]


def test_the_choices_are_the_engines(module):
    from rlr_core.training.saved_loras import BEST, LAST

    assert module.WHICH == [LAST, BEST]


def test_a_run_gives_its_lora_its_chart_and_its_figures(pack, run, sockets_of, module, base):
    trained = run("RLR_Train", run_name="of-last-week", **sockets_of, **SMALL)
    output = output_of(pack, "RLR_Runs", run="of-last-week")
    lora, chart, summary = output.args
    assert lora.keys() == trained[0].keys() and lora.metadata == trained[0].metadata
    assert all(torch.equal(lora[key], trained[0][key]) for key in lora)
    assert chart.shape[0] == 1 and chart.std() > 0.05
    assert summary.startswith("of-last-week: 2 of 2 updates, finished") and output.ui["text"] == [summary]
    (path,) = run("RLR_SaveLoRA", lora=lora, name="again")
    assert Path(path).read_bytes() == Path(trained[4], "lora.safetensors").read_bytes()


def test_the_best_by_the_judge_is_kept_beside_the_last(run, sockets_of):
    """The judge dislikes what is trained for, so that the untrained LoRA is its best."""
    (against,) = run("RLR_CombineRewards", reward_1=sockets_of["reward"], weight_1=-1.0, normalize=False)
    sockets = sockets_of | {"judge": against}
    folder = run("RLR_Train", run_name="judged", **sockets, **SMALL, stop_when_judge_drops="on")[4]
    last, best = (run("RLR_Runs", run="judged", which=which)[0] for which in ("last", "best by the judge"))
    assert os.path.isfile(f"{folder}/best_lora.safetensors") and last.keys() == best.keys()
    assert not any(value.any() for key, value in best.items() if key.endswith("lora_up.weight"))
    assert best.metadata["rlr_reason"] in ("best by the judge", "the judge dropped")


def test_a_run_that_rises_to_its_end_has_its_best_there(run, sockets_of):
    sockets = sockets_of | {"judge": sockets_of["reward"]}
    run("RLR_Train", run_name="rising", **sockets, **SMALL, stop_when_judge_drops="on")
    last, best = (run("RLR_Runs", run="rising", which=which)[0] for which in ("last", "best by the judge"))
    assert any(value.any() for key, value in best.items() if key.endswith("lora_up.weight"))
    assert best.metadata["rlr_reason"] == "best by the judge" and "rlr_steps" not in best.metadata
    assert last.metadata["rlr_steps"] == "2"


def test_the_newest_comes_first_and_what_is_no_run_is_left_out(run, sockets_of, module, base):
    for name in ("older", "newer"):
        run("RLR_Train", run_name=name, **sockets_of, **SMALL | {"steps": 1})
    (base / "output/rlr/no-run").mkdir()
    names = module.run_names()
    assert names.index("newer") < names.index("older") and "no-run" not in names
    os.utime(base / "output/rlr/older/metrics.jsonl")
    assert module.run_names()[0] == "older"


def test_what_is_no_run_is_refused_in_a_sentence(pack, run, sockets_of, module, base):
    from rlr_core.errors import UserError

    check = pack["RLR_Runs"].validate_inputs
    assert "no run 'nobody'" in check(run="nobody") and "cannot be used as a name" in check(run="../x")
    assert "RLR Train makes one" in check(run=module.NONE)
    with pytest.raises(UserError, match="not in its list"):
        run("RLR_Runs", run="../judged")
    folder = base / "output/rlr/begun"
    run("RLR_Train", run_name="begun", **sockets_of, **SMALL | {"steps": 1})
    with pytest.raises(UserError, match="has not kept its best LoRA"):
        run("RLR_Runs", run="begun", which="best by the judge")
    (folder / "lora.safetensors").unlink()
    with pytest.raises(UserError, match="has no LoRA yet"):
        run("RLR_Runs", run="begun")
