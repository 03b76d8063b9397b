"""Two processes under `accelerate launch` make the update that one process makes with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import rows, run, small_config, weights

HELPERS = Path(__file__).parents[1] / "helpers"


def launch(settings: dict, tmp_path: Path) -> None:
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(settings))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", str(HELPERS / "runs.py"), str(config),
    ]  # fmt: skip
    paths = os.pathsep.join([str(HELPERS.parents[1]), str(HELPERS)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [{"name": "adaptive"}, {"name": "rlr", "perturbations": 2}],
    ids=["adaptive", "rlr"],
)
def test_two_processes_equal_one(method, tmp_path):
    """Also its metrics: rewards, judge and evaluations are those of the whole batch."""
    settings = small_config(tmp_path / "one", method=method, steps=3)
    run(settings)
    launch(settings | {"out": str(tmp_path / "two")}, tmp_path)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-4), name
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
