"""The comparison of methods: what a result holds, and what tables and files make of results."""

from __future__ import annotations

import json

import pytest

from rlr_core.benchmarks import comparison
from rlr_core.benchmarks.comparison import ARMS, Arm
from rlr_core.demo.preset import demo_config


def result(arm: str, seed: int, gain: float, reward: str = "demo") -> dict:
    """Four pictures that gain `gain` on average by the end, and half of it at equal seconds."""
    before = {"judge": [0.0, 1.0, 0.0, 1.0], "reward": [0.1, 0.2, 0.3, 0.4], "diversity": 0.2}

    def after(share):
        moved = {
            name: [x + share * gain + d for x, d in zip(before[name], (-0.1, 0.1, 0.0, 0.0), strict=True)]
            for name in ("judge", "reward")
        }
        return moved | {"diversity": 0.1, "updates": 10 * seed, "cost": 100, "time": 3.0}

    budgets = {"evaluations": after(1.0), "seconds": after(0.5)}
    return {"arm": arm, "seed": seed, "reward": reward, "before": before} | budgets


@pytest.fixture
def folder(tmp_path):
    for arm, seed, gain in (("awm", 1, 0.3), ("awm", 0, 0.1), ("ddpo", 0, -0.2)):
        text = json.dumps(result(arm, seed, gain))
        Arm(arm, seed, 1, 1.0).file(tmp_path).write_text(text)
    return tmp_path


def test_the_table_has_the_gain_of_every_seed_and_of_all(folder):
    head, *rows = comparison.report(folder)
    assert [row[0] for row in rows] == ["awm", "ddpo"]
    awm = dict(zip(head, rows[0], strict=False))
    assert awm["judge before"] == "50.0"
    assert awm["gain of each seed, equal evaluations"] == "+10.0 +30.0"
    assert awm["gain of each seed, equal seconds"] == "+5.0 +15.0"
    assert awm["of all"].startswith("+10.0")  # of the last budget
    assert rows[0][3].startswith("+20.0 [")


def test_rewards_of_other_kinds_are_their_own_measure(tmp_path):
    file = Arm("awm", 0, 1, 1.0).file(tmp_path)
    file.write_text(json.dumps(result("awm", 0, 0.5, reward="brightness")))
    head, row = comparison.report(tmp_path)
    assert head[1] == "reward before" and row[1] == "0.2" and row[2] == "+0.5"


def test_saved_figures_are_those_of_the_table(folder, rlr):
    code, output, _ = rlr("bench", "--out", folder, "--report", "--save", folder / "figures" / "methods")
    assert code == 0
    assert (folder / "figures" / "methods.png").stat().st_size > 1000
    page = (folder / "figures" / "methods.md").read_text()
    assert "| awm | 50.0 | +10.0 +30.0 |" in page
    means = json.loads((folder / "figures" / "methods.json").read_text())
    assert [round(seed["evaluations"]["gain"], 6) for seed in means["awm"]] == [10.0, 30.0]


@pytest.mark.slow
def test_black_boxes_keep_their_gradient_to_themselves(tmp_path):
    """One update of a method that would use a gradient, on the demo's reward without it."""
    arm = Arm("adaptive, black box", 0, evaluations=1, seconds=0.0)
    assert ARMS[arm.name].black_box
    config = demo_config()
    config = config.replace(batch=4, micro_batch=4, sampler=config.sampler.replace(steps=2))
    comparison.run(tmp_path, config, [arm], 2)
    (found,) = comparison.results(tmp_path)[arm.name]
    assert found["reward"] == "demo"
    assert found["evaluations"] == found["seconds"]
    assert found["evaluations"]["updates"] == 1
    assert len(found["before"]["judge"]) == 2
