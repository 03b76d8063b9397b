"""What a run writes down and tells: rows, pictures, states and events, as the loop goes along."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlr_core.evaluation.measures import Evaluation
from rlr_core.training import checkpoint, export
from rlr_core.training.checkpoint import Counters
from rlr_core.training.events import Event, OnEvent
from rlr_core.training.metrics import peak_bytes
from rlr_core.training.run_folder import STATE, RunFolder
from rlr_core.training.setup import Parts
from rlr_core.training.trackers import make_tracker

SHOWN = 8
"""Pictures in samples/, at most."""


class Journal:
    """Writes to the run folder on the main process; tells events there. Without a folder it only tells."""

    def __init__(self, on_event: OnEvent | None):
        self.on_event = on_event or (lambda event: None)
        self.parts: Parts | None = None
        self.folder: RunFolder | None = None
        self.tracker = None
        self._work: tuple[str, int, int] = ("", 0, 0)
        self._sampler_step = 0
        self._settled: checkpoint.State | None = None
        self._clock = time.monotonic()

    # --- telling ---

    def tell(self, kind: str, **data: Any) -> None:
        """An event. Raises what Ctrl-C, the caller's check, or on_event itself raises."""
        if self.parts is not None:
            self.parts.interrupts.check()
        if self.parts is None or self.parts.world.main:
            self.on_event(Event(kind, data))

    def progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        """How far a part of an update is: done of total pictures."""
        self._work, self._sampler_step = (phase, done, total), 0
        self.tell("progress", phase=phase, done=done, total=total)

    def evaluated(self) -> None:
        """The denoiser is asked: of pictures that are sampled, once a step of the sampler."""
        phase, done, total = self._work
        steps = self._parts.chain.T
        if phase not in ("rollout", "evaluation") or self._sampler_step == steps:
            self._parts.interrupts.check()
            return
        self._sampler_step += 1
        step = self._sampler_step
        config = self._parts.config
        most = config.micro_batch if phase == "rollout" else config.evaluation.batch
        at_a_time = min(most, total - done)
        self.tell(
            "sampler_step", phase=phase, done=done, total=total, at_a_time=at_a_time, step=step, steps=steps
        )

    def warn(self, message: str) -> None:
        """A sentence that a person should read."""
        self.tell("warning", message=message)

    # --- writing ---

    def open(self, resume: bool) -> Counters:
        """Create the run folder, or put the state in it back. Returns how far the run is."""
        parts = self._parts
        if parts.world.main:
            open_or_create = RunFolder.resume if resume else RunFolder.create
            self.folder = open_or_create(parts.config.out, parts.config)
        parts.world.wait()
        self.tracker = make_tracker(parts.config, parts.world)
        counters = Counters()
        if resume:
            folder = self.folder or RunFolder(Path(parts.config.out).expanduser(), parts.config)
            state = folder.load_state()
            if state is not None:
                counters = checkpoint.restore(parts, state, folder.path / STATE)
            if self.folder is not None:
                self.folder.truncate_metrics(counters.step if state is not None else -1)
        self._settled = checkpoint.gather(parts, counters)
        self._clock = time.monotonic()
        return counters

    def record(self, row: dict[str, Any], evaluation: Evaluation | None, counters: Counters) -> None:
        """Complete a row with what was evaluated, write it and tell it. The update is settled then."""
        parts = self._parts
        if evaluation is not None:
            row |= parts.held_out.row(evaluation)
        now = time.monotonic()
        counters.seconds += now - self._clock
        self._clock = now
        row["time/seconds"] = round(counters.seconds, 3)
        row["memory/peak_bytes"] = peak_bytes(parts.model.device)
        if self.folder is not None:
            self.folder.append_metrics(row)
        if self.tracker is not None:
            self.tracker.log(row)
        self._settled = checkpoint.gather(parts, counters)
        self.tell("update", **row)

    def samples(self, step: int, evaluation: Evaluation) -> None:
        """Keep and tell the first held-out pictures."""
        images = evaluation.images[:SHOWN]
        if self.folder is not None:
            self.folder.save_samples(step, images)
        self.tell("samples", step=step, images=images, prompts=evaluation.prompts[: len(images)])

    def close(self) -> None:
        """Nothing more is written."""
        if self.tracker is not None:
            self.tracker.close()
        if self.folder is not None:
            self.folder.close()

    def save(self) -> None:
        """Write the state of the last whole update."""
        if self.folder is not None and self._settled is not None:
            self.folder.save_state(*self._settled)

    @contextmanager
    def saved_whatever_happens(self) -> Iterator[None]:
        """If the body raises, what was done so far is on the disk."""
        try:
            yield
        except BaseException:
            self.save()
            with self._parts.optimizer.ema_weights():
                export.write_lora(self._parts, self.folder, self.settled_step, export.INTERRUPTED)
            raise

    @property
    def settled_step(self) -> int:
        """Updates in the state that `save` writes."""
        return self._settled[1]["step"] if self._settled is not None else 0

    @property
    def _parts(self) -> Parts:
        assert self.parts is not None, "a journal is opened when its run is built"
        return self.parts
