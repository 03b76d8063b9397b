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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlr_core.config import MethodConfig, TrainConfig, config_from_dict


@dataclass(frozen=True)
class Contender:
    """What takes part in a comparison: a method, and the settings in which it runs as it is meant to."""

    method: MethodConfig
    samples_per_prompt: int = 1
    eta: float | None = None
    """Of the sampler; None is the config's."""
    learning_rate: float | None = None
    """None is the config's."""
    black_box: bool = False
    """Whether the reward's gradient is withheld from a method that would use it."""


def _walk(name: str, **options: Any) -> Contender:
    return Contender(MethodConfig(name, **options))


def _black_box_walk(name: str, **options: Any) -> Contender:
    return Contender(MethodConfig(name, **options), samples_per_prompt=4, black_box=True)


def _from_samples(name: str, **options: Any) -> Contender:
    """Groups of four, and a sampler without noise, which these methods have no use for."""
    return Contender(MethodConfig(name, **options), samples_per_prompt=4, eta=0.0)


def _self_trained(name: str, **options: Any) -> Contender:
    """Plain training on one's own pictures falls apart at the others' rate: nothing is pushed away, so its
    gradient is twenty times as long and mostly says to be what one is."""
    return replace(_from_samples(name, train_guided=True, **options), learning_rate=3e-4)


ARMS: dict[str, Contender] = {
    "auto": Contender(MethodConfig("auto"), samples_per_prompt=4),
    "adaptive": _walk("adaptive"),
    "full": _walk("full"),
    "truncated, K = 1": _walk("truncated", depth=1),
    "truncated, random K": _walk("truncated", random_depth=True),
    "rlr (the paper)": _walk("rlr"),
    "rlr, likelihood-ratio remainder": _walk("rlr", remainder="likelihood_ratio"),
    "likelihood_ratio": _walk("likelihood_ratio"),
    "ddpo": _walk("ddpo"),
    "zeroth_order": _walk("zeroth_order"),
    "rlr, importance-weighted": _walk("rlr", remainder="importance"),
    "adaptive, whole chain": _walk("adaptive", budget=1.0),
    "nft": _from_samples("nft"),
    "awm": _from_samples("awm"),
    "dpo": _from_samples("dpo"),
    "graft": _self_trained("graft", buffer=64),
    "p_graft, N_I = T/4": _self_trained("p_graft", accept_at=0.25, buffer=64),
    "p_graft, N_I = T/2": _self_trained("p_graft", accept_at=0.5, buffer=64),
    "p_graft, N_I = 3T/4": _self_trained("p_graft", accept_at=0.75, buffer=64),
    "reward_weighted": _self_trained("reward_weighted"),
    "adaptive, black box": _black_box_walk("adaptive"),
    "rlr, black box": _black_box_walk("rlr"),
    "likelihood_ratio, black box": _black_box_walk("likelihood_ratio"),
    "ddpo, groups of four": _black_box_walk("ddpo"),
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

    contender = ARMS[arm.name]
    method = contender.method.replace(kl_weight=config.method.kl_weight)
    settings = config_from_dict(config.to_dict() | {"seed": arm.seed, "method": method, "steps": 10**6})
    settings.samples_per_prompt = contender.samples_per_prompt
    if contender.eta is not None:
        settings.sampler.eta = contender.eta
    if contender.learning_rate is not None:
        settings.optimizer.learning_rate = contender.learning_rate
    settings.evaluation.samples = samples
    model = load_model(settings.model, settings.device, settings.dtype)
    reward: Any = load_reward(settings.reward, **settings.reward_options)
    if contender.black_box:
        reward = _without_gradient(reward)
    trainer = Trainer(model, reward, settings)
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


def _without_gradient(reward: Any) -> Callable[..., Any]:
    """The same scores, and nothing that could be differentiated."""

    def scores(images: Any, prompts: Sequence[str]) -> Any:
        return reward(images, prompts).detach()

    return scores


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
