"""The training loop: sample, score, estimate the gradient, climb; watch a judge; write everything down.

    result = train(model, reward, config)
    result.lora.save("better.safetensors")

Everything random is a function of the seed, the update and the trajectory, so a run that goes on from a
saved state is bit-equal to one that never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlr_core.common.distributed import World
from rlr_core.config import TrainConfig
from rlr_core.config.prompts import read_prompts, with_prompts_read
from rlr_core.config.validate import check_config
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.errors import UserError
from rlr_core.evaluation.held_out import Watch
from rlr_core.evaluation.measures import Evaluation
from rlr_core.gradients.estimator import Estimate, Estimator, Rollouts
from rlr_core.lora.attach import Adapter, attach
from rlr_core.lora.formats import save_lora
from rlr_core.rewards import load_reward
from rlr_core.rewards.base import Reward
from rlr_core.training.batches import Batches
from rlr_core.training.events import Event, OnEvent
from rlr_core.training.interrupts import Interrupts
from rlr_core.training.metrics import peak_bytes
from rlr_core.training.optimizer import Ascent
from rlr_core.training.preflight import check_memory
from rlr_core.training.run_folder import LORA, RunFolder
from rlr_core.training.scoring import Scorer

GIVE_UP_AFTER = 5
"""Updates in a row whose gradient is not finite."""


@dataclass
class TrainedLora:
    """A trained adapter, still in the model, and what its file says about it."""

    adapter: Adapter
    metadata: dict[str, str]

    def save(self, path: str | Path, layout: str = "kohya") -> Path:
        """Write a LoRA file. layout: kohya (ComfyUI, A1111, diffusers) or diffusers."""
        save_lora(self.adapter, path, layout=layout, metadata=self.metadata)
        return Path(path)


@dataclass
class TrainResult:
    """What a run leaves: the LoRA, the run folder, the rows of metrics.jsonl, both evaluations."""

    lora: TrainedLora
    folder: Path
    metrics: list[dict[str, Any]]
    step: int
    reason: str
    """finished, or 'the judge dropped'."""
    before: Evaluation | None
    after: Evaluation | None


def train(
    model: DiffusionModel,
    reward: Reward | Any,
    config: TrainConfig,
    *,
    judge: Reward | Any | None = None,
    on_event: OnEvent | None = None,
    check: Callable[[], None] | None = None,
    resume: bool = False,
) -> TrainResult:
    """Fine-tune `model` on `reward` and return its LoRA, which stays attached to the model.

    reward, judge: a Reward, a name, or a callable (images [B, 3, H, W] in [0, 1], prompts) -> [B]; they win
    over the config's names. resume: go on from the state in config.out. Ctrl-C ends the run before the next
    evaluation of the denoiser, with the state of the last whole update and the LoRA so far saved, and is
    raised again; so is what on_event raises, and what check raises, which is called before every evaluation
    and every decoded piece. Raises UserError for settings, prompts or files that cannot work.
    """
    trainer = Trainer(model, reward, config, judge=judge, on_event=on_event, check=check)
    check_memory(trainer)
    trainer.open_folder(resume)
    return trainer.run()


class Trainer:
    """One run. `run` is the loop; the rest is its parts in the order in which it uses them.

    Without a folder, `calibrate`, `update` and `evaluate` serve those who write a loop of their own.
    """

    def __init__(
        self,
        model: DiffusionModel,
        reward: Reward | Any,
        config: TrainConfig,
        *,
        judge: Reward | Any | None = None,
        on_event: OnEvent | None = None,
        check: Callable[[], None] | None = None,
    ):
        check_config(config)
        self.model, self.config = model, with_prompts_read(config)
        config = self.config
        self.world = World()
        self.on_event = on_event or (lambda event: None)
        self.reward = load_reward(reward).to(model.device)
        judge = judge if judge is not None else config.evaluation.judge
        options = config.evaluation.judge_options if isinstance(judge, str) else {}
        self.judge = None if judge is None else load_reward(judge, **options).to(model.device)

        self.height = config.sampler.height or model.default_size[0]
        self.width = config.sampler.width or model.default_size[1]
        self.latent_shape = model.latent_shape(self.height, self.width)
        self.chain = Chain(model, model.schedule(config.sampler), config.sampler.guidance)

        lora = config.lora
        self.adapter = attach(model, lora.rank, lora.alpha, lora.targets, config.seed, lora.text_encoder)
        try:
            self.batches, held_out = self._prompts()  # encoded as the adapter wants them
        except BaseException:
            self.adapter.detach()
            raise
        model.gradient_checkpointing(config.gradient_checkpointing)
        parameters = self.adapter.parameters()
        self.ascent = Ascent(parameters, config.optimizer, config.steps)
        self.interrupts = Interrupts(check)
        self.chain.on_evaluation = self.interrupts.check
        self.scorer = Scorer(
            model, self.reward, self.batches.texts, config.decode_batch,
            before_piece=self.interrupts.check, surrogate=config.method.surrogate,
        )  # fmt: skip
        self.estimator = Estimator(
            self.chain, parameters, config.method, self.scorer,
            pathwise=self.scorer.pathwise, differentiable=self.reward.differentiable,
            micro_batch=config.micro_batch, base=self.adapter.disabled, seed=config.seed, world=self.world,
            on_phase=lambda phase, done, total: self._progress(phase)(done, total),
        )  # fmt: skip

        self.step = 0
        self.skipped = self.skipped_in_a_row = 0
        self.seconds = 0.0
        self.watch = Watch(
            self.chain, self.reward, self.judge, self.batches.book, held_out, config.evaluation,
            seed=config.seed, latent_shape=self.latent_shape, keep=config.keep_samples, world=self.world,
            averaged=self.ascent.averaged, adapter_state=self.adapter.state_dict,
        )  # fmt: skip
        self.folder: RunFolder | None = None
        self._earlier: list[int] = [0, 0]
        self._clock = time.monotonic()

    # --- the loop ---

    def run(self) -> TrainResult:
        """Train until config.steps, or until the judge drops."""
        config, reason = self.config, "finished"
        self._clock = time.monotonic()
        self._settled = self._state()
        self._tell("start", steps=config.steps, first_step=self.step)
        self._warn_about_hidden_steps()
        try:
            with self.interrupts:
                if self.watch.before is None:
                    first = self.evaluate()
                    self.watch.dropped(first)
                    self._record({"step": 0}, first)
                self.calibrate()
                while self.step < config.steps:
                    row = self.update()
                    last = self.step == config.steps
                    watched = None
                    if last or self.step % config.evaluation.every == 0:
                        watched = self.evaluate()
                    dropped = watched is not None and self.watch.dropped(watched)
                    self._record(row, watched)
                    if last or dropped or self.step % config.save_every == 0:
                        self._save()
                    if dropped:
                        reason = "the judge dropped"
                        break
                return self._finish(reason)
        except BaseException:
            self._save()
            with self.ascent.averaged():
                self._save_lora("interrupted")
            raise
        finally:
            self.model.gradient_checkpointing(False)

    def calibrate(self) -> None:
        """Let the method measure what its first update is planned from, if it has to."""
        if self.estimator.needs_calibration:
            batch = self.batches.draw(-1)
            self.estimator.calibrate(self.estimator.sample(-1, batch), batch)

    def update(self) -> dict[str, Any]:
        """One update: a row of metrics.jsonl."""
        method = self.config.method
        batch = self.batches.draw(self.step)
        rollouts = self.estimator.sample(self.step, batch)
        estimate = self.estimator.estimate(rollouts, batch)
        if method.name == "ddpo" and estimate.ratio_error > 1e-2:
            raise UserError(
                f"The likelihood ratio of unchanged weights is off by {estimate.ratio_error:.2g}: the "
                f"denoiser is not repeatable in {self.model.dtype}; use dtype=fp32, or another method."
            )
        kl = estimate.kl if method.kl_weight > 0 else self.estimator.measure_kl(rollouts)
        norm, taken = self.ascent.climb(estimate.gradient, self.step)
        for _ in range(method.inner_epochs - 1 if method.name == "ddpo" and taken else 0):
            again = self.estimator.estimate(rollouts, batch, replay=True)
            estimate.ratio_error, estimate.clipped = again.ratio_error, again.clipped
            self.ascent.climb(again.gradient, self.step)
        self._count_skipped(taken, norm)
        self.reward.after_update()
        self.step += 1
        return self._row(rollouts, estimate, norm, kl)

    def _count_skipped(self, taken: bool, norm: float) -> None:
        if taken:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        self._tell("warning", message=f"Update {self.step + 1} was skipped: its gradient norm is {norm}.")
        if self.skipped_in_a_row >= GIVE_UP_AFTER:
            cause = "lower optimizer.learning_rate"
            if self.model.dtype == torch.float16:
                cause = f"fp16 overflows: use dtype=bf16 or fp32, or {cause}"
            raise UserError(
                f"{GIVE_UP_AFTER} updates in a row had gradients that are not finite; {cause}. "
                f"The state before them is kept in {self.config.out}."
            )

    def _row(self, rollouts: Rollouts, estimate: Estimate, norm: float, kl: float) -> dict[str, Any]:
        rewards, counts = rollouts.rewards, self._evaluations()
        if rewards.numel() > 1 and float(rewards.std()) == 0.0:
            constant = f"Reward {self.reward.name!r} gave every picture {rewards[0, 0]:g}: nothing to learn."
            self._tell("warning", message=constant)
        row = {
            "step": self.step,
            "reward/mean": float(rewards.mean()),
            "reward/std": float(rewards.std()) if rewards.numel() > 1 else 0.0,
            "gradient/norm": norm,
            "kl": kl,
            "learning_rate": self.ascent.learning_rate(self.step - 1),
            "evaluations/forward": counts[0],
            "evaluations/backward": counts[1],
            "updates/skipped": self.skipped,
        }
        row |= {f"reward/{name}": mean for name, mean in self.scorer.parts().items()}
        if self.config.method.name == "ddpo":
            row |= {"ratio/error": estimate.ratio_error, "ratio/clipped": estimate.clipped}
        if self.estimator.method.calibrates:
            lam = self.estimator.running.lam()[1:] if self.estimator.pathwise else torch.zeros(1)
            row["lambda/mean"] = float(lam.mean())
        return row

    def _prompts(self) -> tuple[Batches, list[int]]:
        """One book of all prompts; batches of those to train on, the numbers of those held out."""
        config, sampler = self.config, self.config.sampler
        training = read_prompts(config.prompts)
        held_out = read_prompts(config.evaluation.prompts) if config.evaluation.prompts else training
        every = list(dict.fromkeys([*training, *held_out]))
        book = PromptBook(self.model, every, sampler.negative_prompt, sampler.stage_boundaries)
        self.model.release_text_encoders()
        for scorer in (self.reward, self.judge):
            if scorer is not None:
                scorer.prepare([prompt.text for prompt in every])
        place = {prompt: number for number, prompt in enumerate(every)}
        batches = Batches(
            book, [place[p] for p in training], config.batch, config.samples_per_prompt, config.seed,
            self.latent_shape,
        )  # fmt: skip
        return batches, [place[p] for p in held_out]

    # --- watching ---

    def evaluate(self) -> Evaluation:
        """The judge and the reward on held-out prompts and seeds, of the adapter as it would be saved now."""
        found = self.watch.look(self._progress("evaluation"))
        if self.world.main and self.folder is not None:
            self.folder.save_samples(self.step, found.images)
        self._tell("samples", step=self.step, images=found.images, prompts=found.prompts[: len(found.images)])
        return found

    def _warn_about_hidden_steps(self) -> None:
        hidden = self.estimator.hidden_steps()
        if hidden:
            self._tell(
                "warning",
                message=f"The last {hidden} of {self.chain.T} sampler steps have no noise, so this reward "
                f"cannot reach them; set sampler.last_step_noise=0.05 to let it.",
            )

    def _record(self, row: dict[str, Any], watched: Evaluation | None) -> None:
        """Complete a row with what was watched, write it and tell it. The update is settled then."""
        if watched is not None:
            row |= self.watch.row(watched)
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
        row |= {"time/seconds": round(self.seconds, 3), "memory/peak_bytes": peak_bytes(self.model.device)}
        if self.world.main:
            self.folder.append_metrics(row)
        self._settled = self._state()
        self._tell("update", **row)

    def _progress(self, phase: str) -> Callable[[int, int], None]:
        return lambda done, total: self._tell("progress", phase=phase, done=done, total=total)

    def _tell(self, kind: str, **data: Any) -> None:
        self.interrupts.check()
        if self.world.main:
            self.on_event(Event(kind, data))

    # --- state ---

    def _evaluations(self) -> tuple[int, int]:
        """Denoiser evaluations of the whole run, over all processes."""
        counts = self.chain.evaluations
        total = self.world.sum(torch.tensor([counts.forward, counts.backward]))
        forward, backward = (total + torch.tensor(self._earlier)).tolist()
        return forward, backward

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that it takes to go on exactly, as of the last whole update."""
        watched, kept = self.watch.to_state()
        groups: Mapping[str, Mapping[str, Tensor]] = {
            "adapter": self.adapter.state_dict(),
            "ascent": self.ascent.state_dict(),
            "estimator": self.estimator.state_dict(),
            "reward": self.reward.state_dict(),
            **watched,
        }
        tensors = {
            f"{group}/{name}": value.detach().clone()
            for group, part in groups.items()
            for name, value in part.items()
        }
        values: dict[str, Any] = {
            "step": self.step, "seconds": self.seconds, "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row, "evaluations": self._evaluations(), **kept,
        }  # fmt: skip
        return tensors, values

    def _load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        self.adapter.load_state_dict(groups["adapter"])
        self.ascent.load_state_dict(groups["ascent"])
        self.estimator.load_state_dict(groups["estimator"])
        self.reward.load_state_dict(groups.get("reward", {}))
        self.step, self.seconds = values["step"], values["seconds"]
        self.skipped, self.skipped_in_a_row = values["skipped"], values["skipped_in_a_row"]
        self._earlier = values["evaluations"]
        self.watch.from_state(groups, values)

    def open_folder(self, resume: bool) -> None:
        """Create config.out, or go on from the state in it."""
        if self.world.main:
            open_or_create = RunFolder.resume if resume else RunFolder.create
            self.folder = open_or_create(self.config.out, self.config)
        self.world.wait()
        if not resume:
            return
        self.folder = self.folder or RunFolder(Path(self.config.out).expanduser(), self.config)
        found = self.folder.load_state()
        if found is not None:
            self._load(*found)
        if self.world.main:
            self.folder.truncate_metrics(self.step if found is not None else -1)

    def _save(self) -> None:
        """Write the state of the last whole update."""
        if self.world.main:
            self.folder.save_state(*self._settled)

    # --- the end ---

    def _finish(self, reason: str) -> TrainResult:
        """Leave the adapter as it is to be used; write the LoRA and the pictures."""
        from rlr_core.evaluation.plots import plot_before_after, plot_reward

        watch = self.watch
        if reason != "finished" and watch.best is not None:
            watch.latest = watch.best[0]
            self.adapter.load_state_dict(watch.best[1])
        elif self.ascent.averages is not None:
            torch._foreach_copy_([p.data for p in self.ascent.parameters], self.ascent.averages)
        rows: list[dict[str, Any]] = []
        if self.world.main:
            rows = self.folder.metrics()
            judge = self.judge.name if self.judge is not None else f"{self.reward.name}, held out"
            with self.folder.replacing("reward.png") as path:
                plot_reward(rows, path, self.reward.name, judge)
            with self.folder.replacing("before_after.png") as path:
                plot_before_after(watch.before, watch.latest, path, watch.judged_by)
        lora = self._save_lora(reason)  # last: its metadata says that the run is over
        self.world.wait()
        self._tell("done", step=self.step, reason=reason)
        return TrainResult(lora, Path(self.config.out), rows, self.step, reason, watch.before, watch.latest)

    def _save_lora(self, reason: str) -> TrainedLora:
        """Write the adapter as it stands, and how the run came to an end, to the run folder."""
        config = self.config
        lora = TrainedLora(
            self.adapter,
            {
                "family": self.model.family,
                "method": config.method.name,
                "reward": self.reward.name,
                "steps": str(self.step),
                "config": config.fingerprint(),
                "reason": reason,
            },
        )
        if self.world.main:
            with self.folder.replacing(LORA) as path:
                lora.save(path)
        return lora
