"""RLR Sample."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rlr_core.errors import UserError

from . import defaults, host, images, sampling, sockets
from .schema import CATEGORY, Node, RlrModel, RlrPrompts, rare, setting_input, settings_from

MOST = 256

SETTINGS = {
    name: f"sampler.{name}" for name in ("steps", "guidance", "width", "height", "eta", "negative_prompt")
}
"""Input -> setting."""


class SampleNode(Node):
    """Pictures of a model as RLR Train sees it: the same sampler, with or without its LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RLR_Sample",
            display_name="RLR Sample",
            category=CATEGORY,
            description="Samples pictures exactly as training does. For finished work use KSampler with RLR "
            "Apply LoRA.",
            inputs=[
                RlrModel.Input("model", tooltip="From RLR Load Checkpoint or RLR From ComfyUI; with the LoRA "
                               "from RLR Train."),
                RlrPrompts.Input("prompts", tooltip="What to draw: one picture or more of each."),
                io.Int.Input("seed", default=0, min=0, max=2**53 - 1, control_after_generate=False,
                             tooltip="Seed of the first picture; the next ones take the next seeds."),
                sampling.steps_input("steps"),
                sampling.guidance_input("guidance"),
                io.Int.Input("per_prompt", default=1, min=1, max=64, tooltip="Pictures of each prompt."),
                io.Int.Input("most_prompts", default=8, min=1, max=256,
                             tooltip="At most this many prompts, from the first on."),
                setting_input("sampler.width", max=2048, step=8),
                setting_input("sampler.height", max=2048, step=8),
                setting_input("sampler.eta", advanced=True, default=0.0),
                setting_input("sampler.negative_prompt", advanced=True),
                rare(io.Int.Input, "batch", default=4, min=1, max=64, tooltip="Pictures at a time."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The pictures, prompt after prompt.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def run(cls, model: Any, prompts: Any, seed: int, **inputs: Any) -> io.NodeOutput:
        if not isinstance(model, sockets.Model) or not isinstance(prompts, sockets.Prompts):
            raise UserError("RLR Sample takes model and prompts from RLR nodes.")
        inputs = sampling.filled(inputs, model, "steps", "guidance")
        prompts = defaults.prompts(prompts, model)
        for warning in sampling.warnings(model, inputs["guidance"]):
            host.log(warning)
            host.say(str(cls.hidden.unique_id), warning)
        chosen = prompts.training[: inputs["most_prompts"]]
        texts = [prompt for prompt in chosen for _ in range(inputs["per_prompt"])]
        if len(texts) > MOST:
            raise UserError(f"{len(texts)} pictures at once are too many; ask for at most {MOST}.")
        with host.whole_device("Lower batch, width or height.") as device:
            drawn = _draw(model, texts, seed, prompts.boundaries, inputs, device)
        return io.NodeOutput(images.to_comfy(drawn))


def _draw(
    model: Any, texts: list[Any], seed: int, boundaries: Any, inputs: dict[str, Any], device: Any
) -> Any:
    from rlr_core.config import SamplerConfig
    from rlr_core.evaluation.sampling import sample

    sampler = SamplerConfig(**settings_from(inputs, SETTINGS)["sampler"], stage_boundaries=boundaries)
    seeds = range(seed, seed + len(texts))
    report = host.Progress(len(texts)).counting()
    with host.loaded(model, device) as (loaded, adapter):
        return sample(
            loaded,
            texts,
            seeds,
            sampler,
            adapter=adapter,
            batch=inputs["batch"],
            on_progress=report,
            check=host.check_cancel,
        )
