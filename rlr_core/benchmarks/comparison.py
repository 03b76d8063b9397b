"""Methods side by side: the same model, reward and settings, at equal evaluations and at equal seconds.

Each arm trains until it has spent both budgets and is judged, on held-out prompts and seeds, where it crosses
each. What watching costs is in neither budget. A result is a JSON file, so that a benchmark can be
interrupted, spread over several processes, and reported again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlr_core.config import MethodConfig, TrainConfig, config_from_dict

ARMS: dict[str, MethodConfig] = {
    "adaptive": MethodConfig("adaptive"),
    "full": MethodConfig("full"),
    "truncated, K = 1": MethodConfig("truncated", depth=1),
    "truncated, random K": MethodConfig("truncated", random_depth=True),
    "rlr (the paper)": MethodConfig("rlr"),
    "rlr, likelihood-ratio remainder": MethodConfig("rlr", remainder="likelihood_ratio"),
    "likelihood_ratio": MethodConfig("likelihood_ratio"),
    "ddpo": MethodConfig("ddpo"),
    "zeroth_order": MethodConfig("zeroth_order"),
    "rlr, importance-weighted": MethodConfig("rlr", remainder="importance"),
    "adaptive, whole chain": MethodConfig("adaptive", budget=1.0),
}
"""What is compared: every row of the table of methods, with its variants."""


@dataclass
class Arm:
    """One training of one arm."""

    name: str
    seed: int
    evaluations: int
    """Budget of denoiser evaluations, with or without a gradient; guidance counts twice."""
    seconds: float
    """Budget of seconds."""

    def file(self, folder: Path) -> Path:
        """Where its result lies."""
        slug = "".join(c if c.isalnum() else "_" for c in self.name)
        return folder / f"{slug}-seed{self.seed}.json"


def cost(row: dict[str, Any]) -> int:
    """Denoiser evaluations so far, from a row of metrics."""
    return row["evaluations/forward"] + row["evaluations/backward"]


def run_arm(arm: Arm, config: TrainConfig, samples: int) -> dict[str, Any]:
    """Train one arm on a fresh model; its scores before, at equal evaluations and at equal seconds."""
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.rewards import load_reward
    from rlr_core.training.trainer import Trainer

    method = ARMS[arm.name].replace(kl_weight=config.method.kl_weight)
    settings = config_from_dict(config.to_dict() | {"seed": arm.seed, "method": method, "steps": 10**6})
    settings.evaluation.samples = samples
    model = load_model(settings.model, settings.device, settings.dtype)
    trainer = Trainer(model, load_reward(settings.reward, **settings.reward_options), settings)
    result: dict[str, Any] = {"arm": arm.name, "seed": arm.seed, "before": _scores(trainer.evaluate())}
    start = time.monotonic()
    trainer.prepare()
    seconds, row = time.monotonic() - start, None
    while "evaluations" not in result or "seconds" not in result:
        start = time.monotonic()
        row = trainer.update()
        seconds += time.monotonic() - start
        reached = {"evaluations": cost(row) >= arm.evaluations, "seconds": seconds >= arm.seconds}
        due = [budget for budget, there in reached.items() if there and budget not in result]
        if due:
            scores = _scores(trainer.evaluate()) | {
                "updates": row["step"], "cost": cost(row), "time": seconds, "reward_mean": row["reward/mean"]
            }  # fmt: skip
            result |= dict.fromkeys(due, scores)
    return result


def _scores(evaluation: Any) -> dict[str, Any]:
    return {
        "judge": evaluation.scores["judge"].tolist(),
        "reward": evaluation.scores["reward"].tolist(),
        "diversity": evaluation.diversity,
    }


def run(
    folder: Path,
    config: TrainConfig,
    arms: Sequence[Arm],
    samples: int,
    on_done: Callable[[str], None] = print,
) -> None:
    """Run the arms that have no result in `folder` yet; several processes may share the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        file = arm.file(folder)
        claim = file.with_suffix(".running")
        try:
            if file.exists():
                continue
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        try:
            text = json.dumps(run_arm(arm, config, samples))
            temporary = file.with_suffix(".part")
            temporary.write_text(text)
            os.replace(temporary, file)
            on_done(f"{arm.name}, seed {arm.seed}: done")
        finally:
            claim.unlink(missing_ok=True)


def report(folder: Path) -> list[list[str]]:
    """A table of all results in `folder`: judge after each budget with the gain's 95 % interval, diversity.

    The gain is over pictures of the same prompt and seed, all training seeds together; arms in falling order
    of the judge at equal seconds.
    """
    import torch

    from rlr_core.evaluation.measures import ConfidenceInterval

    groups: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        groups.setdefault(result["arm"], []).append(result)
    rows = []
    for name, results in groups.items():
        before = torch.tensor([r["before"]["judge"] for r in results])
        row = [name, f"{100 * before.mean():.1f}"]
        order = 0.0
        for budget in ("evaluations", "seconds"):
            after = torch.tensor([r[budget]["judge"] for r in results])
            gain = ConfidenceInterval.of(100 * (after - before).flatten())
            seeds = " ".join(f"{100 * value:.0f}" for value in after.mean(1))
            row += [
                f"{100 * after.mean():.1f} ({seeds})",
                f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]",
                f"{sum(r[budget]['updates'] for r in results) / len(results):.0f}",
                f"{sum(r[budget]['diversity'] for r in results) / len(results):.3f}",
            ]
            order = float(after.mean())
        rows.append((order, row))
    head = ["method", "before"]
    for budget in ("equal evaluations", "equal seconds"):
        head += [f"judge, {budget} (each seed)", "gain", "updates", "diversity"]
    return [head] + [row for _, row in sorted(rows, key=lambda item: -item[0])]
