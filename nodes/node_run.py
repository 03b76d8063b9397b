"""A run of RLR Train: its folder begun, gone on with or found finished, and what the node gives of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from . import host, images, live, questions, sampling, sockets
from .schema import workflow_of

if TYPE_CHECKING:
    from rlr_core.config import TrainConfig
    from rlr_core.training.results import Results

OUTPUTS = 7
KEPT_OF_THE_DEMO = 48
"""Its pictures are tiny: before_after.png can choose from many."""
NO_MODEL = "patched_model of RLR Train works with RLR From ComfyUI only: use RLR Apply LoRA on a stock MODEL."


class NodeRun:
    """What one queueing of RLR Train does."""

    def __init__(self, node: type, config: TrainConfig, model: sockets.Model, person: sockets.Person | None):
        """node: the node's class, which knows its place in the workflow; person: who is asked, if anybody."""
        self.config, self.model, self.person = config, model, person
        if model.path == "demo":
            config.keep_samples = KEPT_OF_THE_DEMO
        self.node = str(node.hidden.unique_id)
        self.workflow = workflow_of(node)

    def outputs(self, base: Path, restart: bool) -> io.NodeOutput:
        """Go on with the run of these settings in `base` or beside it, or begin one; what the node gives."""
        folder = self._train(base, restart)
        if self.person is not None and questions.waiting(folder, self.config):
            return self._waiting(folder, self.person)
        return self._finished(folder)

    def _train(self, base: Path, restart: bool) -> Path:
        """Bring the run to its last update, or to pictures that a person has to rate, and return its folder;
        at once where it is there already."""
        from rlr_core.training.results import find_runs, read_results

        config = self.config
        *runs, free = find_runs(base.parent, base.name, config)
        if restart and self.person is not None and runs and read_results(runs[-1]).waiting:
            restart = questions.waiting(runs[-1], config)  # one whose pictures have been rated goes on first
        folder = free if restart or not runs else runs[-1]
        config.out = str(folder)
        if folder in runs and (read_results(folder).done(config) or questions.waiting(folder, config)):
            return folder
        watcher = live.Live(folder, self.node, self.workflow, config)
        for warning in sampling.warnings(self.model, config.sampler.guidance):
            watcher.warn(warning)
        self._tell_person(folder, "working")
        try:
            with host.whole_device(_advice(config)) as device:
                self._run(device, watcher, resume=folder in runs)
        except BaseException as error:
            self._tell_person(folder, "stopped")
            if host.was_cancelled(error):
                watcher.end("cancelled", "Cancelled. Queue again and it goes on here.")
            else:
                watcher.end("failed", str(error))
            raise
        if not questions.waiting(folder, config):
            watcher.end("finished")
            self._tell_person(folder, "over")
        return folder

    def _run(self, device: Any, watcher: live.Live, resume: bool) -> None:
        from rlr_core.rewards import load_reward
        from rlr_core.training.trainer import train

        reward = load_reward(self.config.reward, **self.config.reward_options)
        with host.loaded(self.model, device) as (model, _):
            host.check_cancel()
            train(model, reward, self.config, on_event=watcher, check=host.check_cancel, resume=resume)

    def _tell_person(self, folder: Path, state: str) -> None:
        if self.person is not None:
            questions.tell(folder, self.person, self.workflow, state)

    def _waiting(self, folder: Path, person: sockets.Person) -> io.NodeOutput:
        """Nothing for the nodes behind yet; what is waited for in the view, the pictures in RLR Rate."""
        from rlr_core.training.results import read_results

        question = questions.ask(folder, person, self.workflow)
        message = questions.sentence(question)
        view = live.view_of_results(read_results(folder), self.node, self.workflow, "waiting", message)
        live.show(view)
        return io.NodeOutput(*[ExecutionBlocker(None)] * OUTPUTS, ui={"rlr": [view], "text": [message]})

    def _finished(self, folder: Path) -> io.NodeOutput:
        """Everything from the run folder, so that a run just finished and one of last week look the same.

        Its pictures are in the live view, and go on to whatever shows them: not into the node once more.
        """
        from rlr_core.common.weights import read_header, read_tensors
        from rlr_core.training.results import read_results

        results, model = read_results(folder), self.model
        chart, pictures = folder / "reward.png", folder / "before_after.png"
        animation = pictures.with_suffix(".webp")  # of a video model
        lora = sockets.LoraWeights(read_tensors(results.lora), read_header(results.lora).metadata)
        rewards = [row["reward/mean"] for row in results.metrics if row.get("reward/mean") is not None]
        view = live.view_of_results(results, self.node, self.workflow, "finished", self._end(results))
        live.remember(view)
        return io.NodeOutput(
            lora,
            dataclasses.replace(model, lora=str(results.lora)),
            images.read_animation(animation) if animation.is_file() else images.read(pictures),
            images.read(chart),
            str(folder),
            {"loss": [-reward for reward in rewards]},
            model.patched(lora) if isinstance(model, sockets.Native) else ExecutionBlocker(NO_MODEL),
            ui={"rlr": [view]},
        )

    def _end(self, results: Results) -> str:
        """What the live view says of a run that is over; '' is its own word for one that went to its end."""
        early = "" if results.reason == "finished" else f"Stopped early: {results.reason}."
        more = sampling.warnings(self.model, results.config.sampler.guidance)
        done, steps = results.lora_step, self.config.steps
        if results.reason == "finished" and done > steps:
            more.append(
                f"The LoRA has had {done} updates already, more than the {steps} of steps, and is given as "
                f"it is: for one of {steps} set mode to restart."
            )
            host.log(more[-1])
        return " ".join([early or "Finished.", *more]) if more else early


def _advice(config: TrainConfig) -> str:
    """What to lower when memory runs out, with the numbers that would be next."""
    ways = []
    if config.micro_batch > 1:
        ways.append(f"micro_batch to {config.micro_batch // 2} (same result, slower)")
    if not config.gradient_checkpointing:
        ways.append("gradient_checkpointing on")
    if config.sampler.width or config.sampler.height:
        ways.append("size")
    ways.append("the rank or targets of the LoRA")
    return f"What was done so far is saved; queue again after setting {', or '.join(ways)}."
