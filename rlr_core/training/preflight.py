"""Will it fit? Measured on one picture before the first step, so that a run does not die inside one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlr_core.diffusion.chain import EvaluationCounts
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.training.setup import Parts

GIB = 2**30
MARGIN = 1.1
"""What kernels need for themselves, on top of what is measured."""


class Need(NamedTuple):
    """Bytes on the device beside the weights."""

    step: int
    """Per picture, for one denoising step with its way back."""
    picture: int
    """Per picture, to decode and score it with its way back."""

    def total(self, micro_batch: int, decode_batch: int) -> float:
        """At the worst moment; the two never happen at once."""
        return MARGIN * max(self.step * micro_batch, self.picture * decode_batch)


def check_memory(parts: Parts, free: int | None = None) -> Need | None:
    """Refuse a run that would not fit, with the numbers and the settings that would. Raises UserError.

    What is left over lets rollouts keep the graphs of their last steps, which the walk need not repeat then.
    free: bytes to be had; None asks the device. Where it cannot tell, None is returned.
    """
    device = parts.model.device
    if free is None:
        if device.type == "cpu":
            parts.method.keep_graphs(_graph_steps(parts, measure_step(parts), spare_memory()))
            return None
        if device.type != "cuda":
            return None
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    width, height = picture_size(parts)
    try:
        try:
            need = measure(parts)
        except torch.OutOfMemoryError:
            room = parts.model.make_room(free)
            if not room:
                raise
            free += room
            need = measure(parts)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"Not even one picture of {width} x {height} fits into the {free / GIB:.1f} GiB "
            f"that are free. {_smaller(parts, 2.0)}"
        ) from error
    config = parts.config
    needed = need.total(config.micro_batch, config.decode_batch)
    if needed > free:
        free += parts.model.make_room(math.ceil(needed - free))
    if needed > free:
        raise UserError(
            f"This run needs about {needed / GIB:.1f} GiB beside the model, and {free / GIB:.1f} GiB are "
            f"free: {need.step / GIB:.2f} GiB for each of micro_batch {config.micro_batch} in a step, "
            f"{need.picture / GIB:.2f} GiB for each of decode_batch {config.decode_batch} in the reward. "
            f"{_what_fits(parts, need, free)}"
        )
    parts.method.keep_graphs(_graph_steps(parts, need.step, free - needed))
    return need


def spare_memory() -> int:
    """Bytes of the computer's memory that a run may fill with what it could do without: a quarter of what is
    free. 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # Windows
        return 0


def _graph_steps(parts: Parts, step: int, spare: float) -> int:
    """How many steps of a whole batch's rollout may keep their graphs in `spare` bytes. step: a picture's."""
    pictures = len(parts.world.slice(parts.config.batch))
    return max(0, int(spare / (MARGIN * max(1, step) * max(1, pictures))))


def measure(parts: Parts) -> Need:
    """Bytes that one picture takes in a step and in the reward. Leaves no trace in the run."""
    model, reward = parts.model, parts.reward
    state, latents = reward.state_dict(), _one_latent(parts)
    text = parts.batches.book.texts(parts.batches.prompts[:1])

    def score() -> Tensor:
        images = model.decode(latents.requires_grad_(parts.scorer.pathwise)).clamp(0, 1)
        return reward(images, text)

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
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


def _what_fits(parts: Parts, need: Need, free: int) -> str:
    """Settings that would fit, as a sentence."""
    config = parts.config
    micro_batch = int(free / (MARGIN * need.step)) if need.step else config.micro_batch
    decode_batch = int(free / (MARGIN * need.picture)) if need.picture else config.decode_batch
    if micro_batch >= 1 and decode_batch >= 1:
        lower = []
        if micro_batch < config.micro_batch:
            lower.append(f"micro_batch {micro_batch}")
        if decode_batch < config.decode_batch:
            lower.append(f"decode_batch {decode_batch}")
        return f"This would fit: {' and '.join(lower)}; the result stays the same."
    return _smaller(parts, need.total(1, 1) / free)


def _smaller(parts: Parts, excess: float) -> str:
    """What to do when one picture is too much; excess: how many times too much."""
    if not parts.config.gradient_checkpointing:
        return "Set micro_batch 1, decode_batch 1 and gradient_checkpointing on."
    sides = picture_size(parts)
    width, height = (max(64, int(side / math.sqrt(excess)) // 64 * 64) for side in sides)
    return f"With micro_batch 1 and decode_batch 1, pictures of {width} x {height} would fit."
