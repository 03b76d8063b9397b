"""Will it fit? Measured on one picture before the first step, so that a run does not die inside one.

What is too much at a time is cut into smaller pieces, which changes no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch
from torch import Tensor

from rlr_core.diffusion.chain import EvaluationCounts
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.config import TrainConfig
    from rlr_core.training.setup import Parts

GIB = 2**30
MARGIN = 1.1
"""What kernels need for themselves, on top of what is measured."""
GRAPHS_SHARE = {"cuda": 0.5, "cpu": 0.25}
"""How much of the memory that is left over rollouts may fill with graphs."""
MAIN_MEMORY_SHARE = 0.8
"""How much of the computer's free memory a run may take: other programs go on beside it."""


class Need(NamedTuple):
    """Bytes on the device beside the weights."""

    step: int
    """Per picture, for one denoising step with its way back."""
    picture: int
    """Per picture, to decode and score it with its way back."""

    def total(self, micro_batch: int, decode_batch: int) -> float:
        """At the worst moment; the two never happen at once."""
        return MARGIN * max(self.step * micro_batch, self.picture * decode_batch)


def check_memory(
    parts: Parts, free: int | None = None, tell: Callable[[str], None] = lambda sentence: None
) -> Need | None:
    """Cut the run into pieces that fit, and say so; refuse one that would not fit in any, with the numbers.

    A share of what is left over lets rollouts keep the graphs of their last steps, which the walk need not
    repeat then. free: bytes to be had; None asks the device. Where it does not say, nothing is refused, and
    None is returned. tell: called with a sentence about the settings that were changed; the result does not
    depend on them. Raises UserError.
    """
    if free is None:
        free = free_bytes(parts.model.device)
        if free is None:
            return None
    before = _pieces(parts.config)
    need, free = _measured(parts, free)
    config = parts.config
    if need is not None and (missing := need.total(config.micro_batch, config.decode_batch) - free) > 0:
        free += parts.model.make_room(math.ceil(missing))
    if (need is None or need.total(1, 1) > free) and not config.gradient_checkpointing:
        config.gradient_checkpointing = True
        parts.model.gradient_checkpointing(True)
        need, free = _measured(parts, free)
    if need is None or need.total(1, 1) > free:
        raise UserError(_refusal(parts, need, free))
    _cut(parts, need, free)
    if (after := _pieces(config)) != before:
        changes = [
            f"{name} {after[name]} instead of {before[name]}" for name in after if after[name] != before[name]
        ]
        tell(f"To fit into {free / GIB:.1f} GiB: {', '.join(changes)}. The result stays the same.")
    spare = free - need.total(config.micro_batch, config.decode_batch)
    share = GRAPHS_SHARE.get(parts.model.device.type, 0.0)
    parts.method.keep_graphs(_graph_steps(parts, need.step, share * spare))
    return need


def _graph_steps(parts: Parts, step: int, spare: float) -> int:
    """How many steps of a whole batch's rollout may keep their graphs in `spare` bytes. step: a picture's."""
    pictures = len(parts.world.slice(parts.config.batch))
    return max(0, int(spare / (MARGIN * max(1, step) * max(1, pictures))))


def free_bytes(device: torch.device) -> int | None:
    """Bytes to be had: of the card's memory, or of the computer's; None on other devices."""
    if device.type == "cpu":
        return int(MAIN_MEMORY_SHARE * psutil.virtual_memory().available)
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _measured(parts: Parts, free: int) -> tuple[Need | None, int]:
    """What one picture needs, None where not even that fits, and the bytes that are free by then."""
    try:
        return measure(parts), free
    except torch.OutOfMemoryError:
        room = parts.model.make_room(free)
    if room:
        try:
            return measure(parts), free + room
        except torch.OutOfMemoryError:
            pass
    return None, free + room


def _pieces(config: TrainConfig) -> dict[str, Any]:
    """The settings that say how a run is cut into pieces."""
    return {
        "micro_batch": config.micro_batch,
        "decode_batch": config.decode_batch,
        "evaluation.batch": config.evaluation.batch,
        "gradient_checkpointing": config.gradient_checkpointing,
    }


def _cut(parts: Parts, need: Need, free: int) -> None:
    """Lower what is too much at a time."""
    config = parts.config

    def at_most(asked: int, each: int) -> int:
        return max(1, min(asked, int(free / (MARGIN * each)))) if each else asked

    config.micro_batch = parts.method.problem.micro_batch = at_most(config.micro_batch, need.step)
    config.decode_batch = parts.scorer.decode_batch = at_most(config.decode_batch, need.picture)
    # without a way back an evaluation needs less; how much less is not measured
    config.evaluation.batch = at_most(config.evaluation.batch, max(need.step, need.picture))


def _refusal(parts: Parts, need: Need | None, free: int) -> str:
    """Why a run cannot be, with numbers and a way out."""
    width, height = picture_size(parts)
    if need is None:
        return (
            f"Not even one picture of {width} x {height} fits into the {free / GIB:.1f} GiB that are free. "
            f"{_smaller(parts, 2.0)}"
        )
    return (
        f"This run needs about {need.total(1, 1) / GIB:.1f} GiB beside the model, one picture at a time and "
        f"with gradient_checkpointing, and {free / GIB:.1f} GiB are free: {need.step / GIB:.2f} GiB in a "
        f"step, {need.picture / GIB:.2f} GiB in the reward. {_smaller(parts, need.total(1, 1) / free)}"
    )


def measure(parts: Parts) -> Need:
    """Bytes that one picture takes in a step and in the reward. Leaves no trace in the run."""
    model, reward = parts.model, parts.reward
    state, latents = reward.state_dict(), _one_latent(parts)
    text = parts.batches.book.texts(parts.batches.prompts[:1])

    def score() -> Tensor:
        images = model.decode(latents.requires_grad_(parts.scorer.pathwise)).clamp(0, 1)
        asked = reward.evaluable and not reward.whole_batch  # nobody is, about a blank picture
        return reward(images, text) if asked else images.sum()

    step_bytes = measure_step(parts)
    try:
        with torch.set_grad_enabled(parts.scorer.pathwise):
            return Need(step_bytes, _cost(score, model.device))
    finally:
        reward.load_state_dict(state)


def measure_step(parts: Parts) -> int:
    """Bytes that one picture takes in a step. Leaves no trace in the run."""
    chain, counts, latents = parts.chain, parts.chain.evaluations, _one_latent(parts)
    conditioning = parts.batches.book.conditioning(parts.batches.prompts[:1])
    chain.evaluations = EvaluationCounts()
    try:
        with torch.enable_grad():
            return _cost(
                lambda: chain.mean(latents.requires_grad_(True), chain.T, conditioning), parts.model.device
            )
    finally:
        chain.evaluations = counts
        for parameter in parts.adapter.parameters():
            parameter.grad = None


def _one_latent(parts: Parts) -> Tensor:
    return torch.zeros(1, *parts.latent_shape, device=parts.model.device)


def picture_size(parts: Parts) -> tuple[int, int]:
    """Width and height in pixels."""
    sampler, default = parts.config.sampler, parts.model.default_size
    return sampler.width or default[1], sampler.height or default[0]


def _cost(function: Callable[[], Tensor], device: torch.device) -> int:
    """Most bytes at a time of a forward and backward pass; without a GPU, what is kept for the way back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = function()
        if result.requires_grad:
            result.sum().backward()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # as it is, an output would hold its own graph and never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


def _smaller(parts: Parts, excess: float) -> str:
    """What to do when one picture is too much; excess: how many times too much."""
    sides = picture_size(parts)
    width, height = (max(64, int(side / math.sqrt(excess)) // 64 * 64) for side in sides)
    return f"Pictures of {width} x {height} would fit."
