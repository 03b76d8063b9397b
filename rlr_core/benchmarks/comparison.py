"""Methods side by side: the same model, reward and settings, at equal evaluations and at equal seconds.

Each arm trains until it has spent both budgets and is judged, on held-out prompts and seeds, where it crosses
each. What watching costs is in neither budget. Seconds on a CPU are those that its cores were at work, so
that other programs do not count. A result is a JSON file, so that a benchmark can be interrupted, spread over
several processes, and reported again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


def _accepted(name: str, **options: Any) -> Contender:
    """Rejection sampling as in its paper: the base model's pictures, all that were accepted so far, and the
    network learns what it says without guidance. Twice the optimizer steps of the others, half as long."""
    return replace(_from_samples(name, inner_steps=2, **options), learning_rate=1e-3)


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
    "d3po": _black_box_walk("d3po"),
    "graft": _accepted("graft"),
    "p_graft, N_I = T/4": _accepted("p_graft", accept_at=0.25),
    "p_graft, N_I = T/2": _accepted("p_graft", accept_at=0.5),
    "p_graft, N_I = 3T/4": _accepted("p_graft", accept_at=0.75),
    "reward_weighted": replace(_from_samples("reward_weighted", temperature=0.25), learning_rate=1e-3),
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
        return result_file(folder, self.name, self.seed)


def result_file(folder: Path, name: str, seed: int) -> Path:
    """Where the result of one training lies."""
    slug = "".join(c if c.isalnum() else "_" for c in name)
    return folder / f"{slug}-seed{seed}.json"


BUDGETS = ("evaluations", "seconds")


def cost(row: dict[str, Any]) -> int:
    """Denoiser evaluations so far, from a row of metrics."""
    return row["evaluations/forward"] + row["evaluations/backward"]


def trainer_of(name: str, seed: int, config: TrainConfig, samples: int, start_from: str | None = None) -> Any:
    """A trainer of a fresh model by one of ARMS. samples: pictures that are judged; start_from: a LoRA."""
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.rewards import load_reward
    from rlr_core.training.trainer import Trainer

    contender = ARMS[name]
    method = contender.method.replace(kl_weight=config.method.kl_weight)
    settings = config_from_dict(config.to_dict() | {"seed": seed, "method": method, "steps": 10**6})
    settings.samples_per_prompt = contender.samples_per_prompt
    if contender.eta is not None:
        settings.sampler.eta = contender.eta
    if contender.learning_rate is not None:
        settings.optimizer.learning_rate = contender.learning_rate
    settings.evaluation.samples = samples
    settings.lora.start_from = start_from
    model = load_model(settings.model, settings.device, settings.dtype)
    reward: Any = load_reward(settings.reward, **settings.reward_options)
    if contender.black_box and reward.differentiable:
        reward = _without_gradient(reward)
    return Trainer(model, reward, settings)


def run_arm(arm: Arm, config: TrainConfig, samples: int) -> dict[str, Any]:
    """Train one arm on a fresh model; its scores before, at equal evaluations and at equal seconds."""
    trainer = trainer_of(arm.name, arm.seed, config, samples)
    result: dict[str, Any] = {"arm": arm.name, "seed": arm.seed, "reward": config.reward}
    result["before"] = _scores(trainer.evaluate())
    clock = time.process_time if trainer.parts.model.device.type == "cpu" else time.monotonic
    start = clock()
    trainer.prepare()
    seconds, row = clock() - start, None
    while not all(budget in result for budget in BUDGETS):
        start = clock()
        row = trainer.update()
        seconds += clock() - start
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
        with claimed(arm.file(folder)) as write:
            if write is not None:
                write(run_arm(arm, config, samples))
                on_done(f"{arm.name}, seed {arm.seed}: done")


@contextmanager
def claimed(file: Path) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """What writes a result to a file, whole or not at all; None where it is there already, or another process
    is at it."""
    claim = file.with_suffix(".running")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        yield None
        return

    def write(result: dict[str, Any]) -> None:
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps(result))
        os.replace(temporary, file)

    try:
        yield None if file.exists() else write
    finally:
        claim.unlink(missing_ok=True)


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All results in `folder`, by arm, in the order of their seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*-seed*.json")):
        result = json.loads(file.read_text())
        found.setdefault(result["arm"], []).append(result)
    return {arm: sorted(rows, key=lambda result: result["seed"]) for arm, rows in found.items()}


def watched(result: dict[str, Any]) -> tuple[str, float]:
    """Which scores tell how good a result is, and their factor: the judge's, in percent, where the reward is
    the demo's, which asks for the same thing; else the reward's own."""
    return ("judge", 100.0) if result["reward"] == "demo" else ("reward", 1.0)


def gains(result: dict[str, Any], budget: str) -> Any:
    """[pictures] what was gained on each held-out picture at a budget."""
    import torch

    name, factor = watched(result)
    return factor * (torch.tensor(result[budget][name]) - torch.tensor(result["before"][name]))


def report(folder: Path) -> list[list[str]]:
    """A table of all results in `folder`: scores after each budget, the gain of each seed and of all with a
    95 % interval, diversity.

    Gains are between pictures of the same prompt and seed, all training seeds together; arms in falling order
    at equal evaluations.
    """
    import torch

    from rlr_core.evaluation.measures import ConfidenceInterval

    rows, title = [], "judge"
    for name, found in results(folder).items():
        title, factor = watched(found[0])
        before = torch.tensor([result["before"][title] for result in found])
        row, order = [name, f"{factor * before.mean():.1f}"], None
        for budget in BUDGETS:
            each = [gains(result, budget) for result in found]
            gain = ConfidenceInterval.of(torch.cat(each))
            interval = "" if gain.low is None else f" [{gain.low:+.1f}, {gain.high:+.1f}]"
            row += [
                " ".join(f"{float(one.mean()):+.1f}" for one in each),
                f"{gain.mean:+.1f}{interval}",
                f"{sum(r[budget]['updates'] for r in found) / len(found):.0f}",
                f"{sum(r[budget]['diversity'] for r in found) / len(found):.3f}",
            ]
            order = gain.mean if order is None else order
        rows.append((order, row))
    head = ["method", f"{title} before"]
    for budget in BUDGETS:
        head += [f"gain of each seed, equal {budget}", "of all", "updates", "diversity"]
    return [head] + [row for _, row in sorted(rows, key=lambda item: -item[0])]


def summary(folder: Path) -> dict[str, Any]:
    """What a table or a picture is made from: every arm and seed with its means, for a small JSON file."""

    def figures(result: dict[str, Any], budget: str) -> dict[str, Any]:
        at = result[budget]
        return {
            "gain": round(float(gains(result, budget).mean()), 3),
            "updates": at["updates"],
            "evaluations": at["cost"],
            "seconds": round(at["time"], 1),
            "diversity": round(at["diversity"], 4),
        }

    def seed(result: dict[str, Any]) -> dict[str, Any]:
        title, factor = watched(result)
        before = factor * sum(result["before"][title]) / len(result["before"][title])
        kept = {"seed": result["seed"], "reward": result["reward"], "scores": title}
        return kept | {"before": round(before, 3)} | {b: figures(result, b) for b in BUDGETS}

    return {name: [seed(result) for result in each] for name, each in results(folder).items()}
