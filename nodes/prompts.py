"""RLR Prompts and RLR Prompt Stages."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rlr_core.errors import UserError

from . import host, queued, sockets
from .schema import CATEGORY, Node, RlrPrompts, rare

NO_FILE = "none: the text below"
DEMO_CAPTIONS = "demo captions (built in)"
READABLE_TEXT = "readable text (built in)"
BUILT_IN = (DEMO_CAPTIONS, READABLE_TEXT)
EXAMPLE = "a photo of a cat\na photo of a dog\na photo of a horse"
MOST = 20_000
LONGEST = 2_000
"""Most prompts, and most characters in one."""
NO_PROMPTS = "There are no prompts: write one a line."


class PromptsNode(Node):
    """A prompt a line, from the widget or from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Prompts",
            display_name="RLR Prompts",
            category=CATEGORY,
            description="The prompts that the model is trained on, one a line; a part can be held out.",
            inputs=[
                io.Combo.Input(
                    "file", options=[NO_FILE, *BUILT_IN, *host.prompt_files()], default=NO_FILE,
                    tooltip="A .txt file in ComfyUI's input folder, one prompt a line, instead of the text. "
                    "The demo captions are those that the built-in model knows; readable text quotes words "
                    "to be written, for the reward text_in_image. Both bring held-out prompts of their own.",
                ),
                io.String.Input(
                    "text", multiline=True, default=EXAMPLE, dynamic_prompts=False,
                    tooltip="One prompt a line. Empty lines are left out. The built-in model is trained on "
                    "its own captions as long as these three lines stay as they are.",
                ),
                rare(
                    io.Float.Input, "held_out", default=0.0, min=0.0, max=0.9, step=0.05,
                    tooltip="Share of the prompts that is kept out of training and used for evaluation only. "
                    "0 evaluates the training prompts with other seeds. The built-in lists bring their own.",
                ),
            ],
            outputs=[RlrPrompts.Output(display_name="prompts", tooltip="For RLR Train and RLR Sample.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **inputs) -> str:
        """A file that was edited is read again."""
        if not file or file in (NO_FILE, *BUILT_IN):
            return "text"
        try:
            return str(host.prompt_path(file).stat().st_mtime_ns)
        except UserError:
            return "missing"

    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        """No prompts are told when Run is pressed; text is None where it comes through a link."""
        file = queued.inputs_of(str(cls.hidden.unique_id)).get("file", NO_FILE)
        return NO_PROMPTS if file == NO_FILE and isinstance(text, str) and not text.strip() else True

    @classmethod
    def run(cls, file: str, text: str, held_out: float) -> io.NodeOutput:
        if file == DEMO_CAPTIONS:
            from rlr_core.demo.scenes import held_out_prompts, training_prompts

            return io.NodeOutput(sockets.Prompts(training_prompts(), held_out_prompts()))
        if file == READABLE_TEXT:
            from rlr_core.config.prompts import SETS

            parts = [SETS / f"readable_text{ending}.txt" for ending in ("", "_held_out")]
            return io.NodeOutput(sockets.Prompts(*(lines(part.read_text("utf-8")) for part in parts)))
        if file != NO_FILE:
            path = host.prompt_path(file)
            if path.stat().st_size > MOST * LONGEST:
                raise UserError(f"{file!r} is too large to be a list of prompts.")
            text = path.read_text(encoding="utf-8-sig", errors="replace")
        prompts = lines(text)
        if not prompts:
            raise UserError(NO_PROMPTS)
        kept = _evenly(len(prompts), round(held_out * len(prompts)))
        training = [prompt for i, prompt in enumerate(prompts) if i not in kept]
        if not training:
            raise UserError(f"Of {len(prompts)} prompts none is left to train on: lower held_out.")
        untouched = file == NO_FILE and text.strip() == EXAMPLE
        watched = [prompts[i] for i in sorted(kept)] or None
        return io.NodeOutput(sockets.Prompts(training, watched, untouched=untouched))


class PromptStages(Node):
    """Prompts that go from coarse to fine while a picture is made (DCoT)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def stage(name: str, example: str, tooltip: str) -> io.Input:
            return io.String.Input(
                name, multiline=True, default=example, dynamic_prompts=False, tooltip=tooltip
            )

        return io.Schema(
            node_id="RLR_PromptStages",
            display_name="RLR Prompt Stages (DCoT)",
            category=CATEGORY,
            description="Prompts in stages: the coarse one shapes the layout, the fine one the details. "
            "Lines with the same number belong together; the reward is asked about the fine one.",
            inputs=[
                stage("coarse", "a bird on a branch", "The prompts of the first steps, one a line."),
                stage("middle", "a small blue bird on a branch",
                      "The prompts of the middle steps. Leave it empty for two stages."),
                stage("fine", "a small blue bird with detailed feathers on a mossy branch, soft light",
                      "The prompts of the last steps, which the reward is asked about too."),
                io.Float.Input("first_boundary", default=0.33, min=0.01, max=0.99, step=0.01,
                               tooltip="Share of the steps, counted from the noise, after which the coarse "
                               "stage ends."),
                io.Float.Input("second_boundary", default=0.66, min=0.01, max=0.99, step=0.01,
                               tooltip="Share of the steps after which the fine stage begins. Not used with "
                               "two stages."),
            ],
            outputs=[RlrPrompts.Output(display_name="prompts", tooltip="For RLR Train and RLR Sample.")],
        )  # fmt: skip

    @classmethod
    def run(
        cls, coarse: str, middle: str, fine: str, first_boundary: float, second_boundary: float
    ) -> io.NodeOutput:
        stages: dict[str, Any] = {"coarse": lines(coarse), "middle": lines(middle), "fine": lines(fine)}
        if not stages["middle"]:
            del stages["middle"]
        counts = {name: len(lines) for name, lines in stages.items()}
        if len(set(counts.values())) > 1 or not stages["fine"]:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UserError(f"Every stage needs the same number of lines, at least 1; there are: {said}.")
        boundaries = [first_boundary, second_boundary][: len(stages) - 1]
        if boundaries != sorted(set(boundaries)):
            raise UserError("second_boundary must be above first_boundary.")
        prompts = [list(group) for group in zip(*stages.values(), strict=True)]
        return io.NodeOutput(sockets.Prompts(prompts, None, boundaries))


def lines(text: str) -> list[str]:
    """The lines that say something. Raises UserError for too many or too long ones."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MOST or any(len(line) > LONGEST for line in lines):
        raise UserError(f"At most {MOST:,} prompts of at most {LONGEST:,} characters each can be used.")
    return lines


def _evenly(count: int, chosen: int) -> set[int]:
    """`chosen` of `count` places, evenly spread."""
    return {i * count // chosen for i in range(chosen)}
