"""The training loop: collect samples, take a step along each gradient, record, evaluate, save.

    result = train(model, reward, config)
    result.lora.save("better.safetensors")

Everything random is a function of the seed, a name and the update, so a run that goes on from a saved state
is bit-equal to one that never stopped. What a run is made of is built in setup.py; what it writes and tells
is journal.py; how its methods get gradients is in the rooms methods/ and gradients/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlr_core.common.listening import heard_inside
from rlr_core.common.pending import Pending
from rlr_core.config import TrainConfig
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.evaluation.measures import Evaluation
from rlr_core.training import export
from rlr_core.training.checkpoint import Counters, total_evaluations
from rlr_core.training.events import OnEvent
from rlr_core.training.export import TrainResult
from rlr_core.training.journal import Journal
from rlr_core.training.metrics import update_row
from rlr_core.training.preflight import check_memory
from rlr_core.training.setup import build
from rlr_core.training.size_warning import warn_of_size


def train(
    model: DiffusionModel,
    reward: Any,
    config: TrainConfig,
    *,
    judge: Any | None = None,
    on_event: OnEvent | None = None,
    check: Callable[[], None] | None = None,
    resume: bool = False,
) -> TrainResult:
    """Fine-tune `model` on `reward` and return its LoRA, which stays attached to the model.

    reward, judge: a Reward, a name, or a callable (images [B, 3, H, W] in [0, 1], prompts) -> [B]; they win
    over the config's names. resume: go on from the state in config.out. Ctrl-C ends the run before the next
    block of a network, with the state of the last whole update and the LoRA so far saved, and is raised
    again; so is what on_event raises, and what check raises, which is called before every block and every
    decoded piece. A run that raises leaves the model as it was, without the adapter. One whose
    reward waits for scores ends with that as its reason; resumed, it takes the same update up again.
    Raises UserError for settings, prompts or files that cannot work.
    """
    trainer = Trainer(model, reward, config, judge=judge, on_event=on_event, check=check)
    try:
        with heard_inside(trainer.parts.model, trainer.parts.interrupts.check):
            warn_of_size(trainer.parts, trainer.journal.warn)
            trainer.journal.progress("memory")
            check_memory(trainer.parts, tell=trainer.journal.warn)
            trainer.counters = trainer.journal.open(resume)
            return trainer.run()
    except BaseException:
        trainer.parts.adapter.detach()
        raise
    finally:
        trainer.journal.close()
        model.gradient_checkpointing(False)


class Trainer:
    """One run. `prepare`, `update` and `evaluate` also serve those who write a loop of their own."""

    def __init__(
        self,
        model: DiffusionModel,
        reward: Any,
        config: TrainConfig,
        *,
        judge: Any | None = None,
        on_event: OnEvent | None = None,
        check: Callable[[], None] | None = None,
    ):
        self.journal = Journal(on_event)
        self.parts = build(model, reward, config, judge=judge, check=check, on_phase=self.journal.progress)
        self.journal.parts = self.parts
        self.parts.chain.on_evaluation = self.journal.evaluated
        self.config = self.parts.config
        self.counters = Counters()

    def run(self) -> TrainResult:
        """Train until config.steps, until the judge drops, or until scores have to be waited for."""
        config, counters, journal, held_out = self.config, self.counters, self.journal, self.parts.held_out
        journal.tell(
            "start",
            steps=config.steps,
            first_step=counters.step,
            pictures=config.batch,
            held_out=len(held_out.seeds),
            evaluate_every=config.evaluation.every,
        )
        if unreachable := self.parts.method.unreachable_steps():
            journal.warn(
                f"The last {unreachable} of {self.parts.chain.T} sampler steps are deterministic, so this "
                f"reward cannot reach them; set sampler.last_step_noise=0.05 to let it."
            )
        with self.parts.interrupts, journal.saved_whatever_happens():
            if held_out.before is None:
                journal.record({"step": 0}, self.evaluate(), counters)
            self.prepare()
            while counters.step < config.steps:
                row = self.update()
                if isinstance(row, Pending):
                    journal.progress("saving")
                    journal.save()
                    return self._finish(row.reason, pending=True)
                last = counters.step == config.steps
                due = last or counters.step % config.evaluation.every == 0
                evaluation = self.evaluate() if due else None
                journal.record(row, evaluation, counters)
                if last or held_out.dropped or counters.step % config.save_every == 0:
                    journal.progress("saving")
                    journal.save()
                if held_out.dropped:
                    return self._finish(export.JUDGE_DROPPED)
            return self._finish(export.FINISHED)

    def prepare(self) -> None:
        """Let the method measure what its first update is planned from, if it has to."""
        if self.parts.reward.evaluable:  # nobody is asked about pictures that are only measured
            self.journal.progress("preparing")
            self.parts.method.prepare(self.parts.batches.draw)
            self.journal.progress("preparing")

    def update(self) -> dict[str, Any] | Pending:
        """One update: a row of metrics.jsonl, or what has to be waited for."""
        parts, counters = self.parts, self.counters
        parts.reward.begin_update()
        batch = parts.batches.draw(counters.step, parts.method.per_prompt)
        samples = parts.method.collect(batch, counters.step)
        if isinstance(samples, Pending):
            return samples
        norms, measured = [], {}
        for estimate in parts.method.gradients(samples):
            step = parts.optimizer.step(estimate.gradient, counters.step)
            norms.append(step.norm)
            measured |= estimate.metrics
            if not step.taken:
                self.journal.warn(f"Update {counters.step + 1}: a step was skipped, its norm is {step.norm}.")
                parts.optimizer.check_not_stuck()
                break
        parts.reward.after_update()
        counters.step += 1
        rewards = parts.method.rewards(samples)
        if rewards.numel() > 1 and float(rewards.std()) == 0.0:
            same = float(rewards.flatten()[0])
            self.journal.warn(f"Reward {parts.reward.name!r} gave every picture {same:g}: nothing to learn.")
        return update_row(
            counters.step,
            rewards,
            norms,
            learning_rate=parts.optimizer.learning_rate(counters.step - 1),
            evaluations=total_evaluations(parts, counters),
            skipped=parts.optimizer.skipped,
            parts=parts.scorer.parts(),
            measured=measured | parts.method.metrics(),
        )

    def evaluate(self) -> Evaluation:
        """The judge and the reward on held-out prompts and seeds, of the adapter as it would be saved now."""
        progress, held_out = self.journal.progress, self.parts.held_out
        progress("evaluation", 0, len(self.parts.world.slice(len(held_out.seeds))))
        evaluation = held_out.evaluate(lambda done, total: progress("evaluation", done, total))
        self.journal.samples(self.counters.step, evaluation)
        return evaluation

    def _finish(self, reason: str, pending: bool = False) -> TrainResult:
        """Leave the adapter as it is to be used; write the pictures, and the LoRA, which says it is over."""
        parts, folder, step = self.parts, self.journal.folder, self.counters.step
        export.keep_best_or_average(parts, reason)
        rows = export.write_pictures(parts, folder)
        lora = export.write_lora(parts, folder, step, reason)
        parts.world.wait()
        self.journal.tell("done", step=step, reason=reason)
        if pending:
            parts.adapter.detach()  # a resumed run brings its own
        before, after = parts.held_out.before, parts.held_out.latest
        return TrainResult(lora, Path(self.config.out), rows, step, reason, before, after)
