"""What a reward is: pictures and prompts in, one number per picture out, higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.rewards.extras import Extra
    from rlr_core.rewards.files import WeightFile


class Reward(ABC):
    """Scores pictures. Subclasses implement `score`; callers use the instance, which checks both sides.

    A picture's score never depends on which pictures are scored beside it, so that a batch may be scored
    whole or picture by picture with the same result. A reward that holds other rewards is a
    `rlr_core.rewards.wrapper.Wrapper`.
    """

    name: str
    differentiable: bool = True
    """Whether the gradient with respect to the pixels is there and meaningful."""
    needs_prompt: bool = False
    """Whether an empty prompt is an error."""
    range: tuple[float, float] = (-float("inf"), float("inf"))
    """Plausible scores, for plots and for warnings."""
    takes: str = "pictures"
    """pictures: `score` sees [B, 3, H, W] only, and a video gets the mean over its frames;
    videos: [B, F, 3, H, W] only; any: both, as they come."""
    whole_batch: bool = False
    """Whether a caller should score a whole batch in one call (a person is asked about pictures together);
    the scores are the same in pieces, but each piece is a question of its own."""
    evaluable: bool = True
    """Whether held-out pictures may be scored by it; where not (a person would be asked about them), the
    surrogate is evaluated in its place."""
    source: tuple[str, dict[str, Any]] | None = None
    """The name and options that `load_reward` was given; None for a reward that was handed over."""
    files: tuple[WeightFile, ...] = ()
    """The weight files it needs, each with where to get it."""
    extra: Extra | None = None
    """The packages it needs beside those that are always there."""
    surrogate: Reward | None = None
    """A differentiable stand-in that correlates with a black-box reward; it lowers the noise, not the aim."""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] or [B, F, 3, H, W] (see `takes`), float in [0, 1].

        A prompt may carry metadata: `rlr_core.common.prompt_text.metadata_of`. Raises
        `rlr_core.common.pending.Pending` where the scores have to be waited for.
        """

    def to(self, device: torch.device | str) -> Reward:
        """Move the reward's networks to a device."""
        return self

    def prepare(self, prompts: Sequence[str]) -> None:
        """Called once with every prompt of the run: embed them and drop the text tower."""

    def keep_in(self, folder: Path) -> None:
        """Called once with the run's folder, for what a reward keeps on the disk."""

    def begin_update(self) -> None:
        """Called at the start of every update, before its pictures are scored.

        An update that was given up halfway begins once more: what it has asked and noted is forgotten.
        """

    def after_update(self) -> None:
        """Called once after every update of the model, and never inside one.

        What a reward averages or learns from the scores it has seen (a running mean, a surrogate's head)
        changes only here: inside an update it stands still, which keeps the gradient unbiased.
        """

    def parts(self) -> dict[str, Tensor]:
        """Scores [B] of the parts of the last call by name, for logging; empty for a simple reward."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What the reward has learned or averaged during a run; saved and restored with the run."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B], float32. Raises UserError for input or output that is not what it should be."""
        prompts = list(prompts)
        check_images(images, prompts, self)
        if images.ndim == 5 and self.takes == "pictures":
            scores = per_frame(self, images, prompts).mean(1)
        else:
            scores = check_scores(self.score(images, prompts), prompts, self.name)
        if self.differentiable and images.requires_grad and torch.is_grad_enabled():
            check_gradient(scores, images, self.name)
        return scores


class CallableReward(Reward):
    """Any Python callable (images, prompts) -> [B] as a reward."""

    takes = "any"

    def __init__(
        self,
        function: Callable[[Tensor, Sequence[str]], Any],
        name: str | None = None,
        differentiable: bool | None = None,
    ):
        """differentiable: None finds out now, by asking the function for the gradient of a gray picture."""
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        declared = differentiable if differentiable is not None else getattr(function, "differentiable", None)
        self.differentiable = self._probe() if declared is None else bool(declared)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)

    def _probe(self) -> bool:
        """Whether the function's result on a small picture has a gradient with respect to the pixels."""
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
            try:
                scores = as_scores(self.function(images, ["a photo"]), 1, self.name)
            except Exception:
                return False
            return depends_on(scores, images)


def per_frame(reward: Reward, videos: Tensor, prompts: Sequence[str]) -> Tensor:
    """Scores [B, F] of every frame of videos [B, F, 3, H, W] by a reward for pictures."""
    frames = videos.shape[1]
    repeated = [prompt for prompt in prompts for _ in range(frames)]
    scores = check_scores(reward.score(videos.flatten(0, 1), repeated), repeated, reward.name)
    return scores.view(-1, frames)


def check_images(images: Tensor, prompts: Sequence[str], reward: Reward) -> None:
    """Refuse, in one sentence, pictures or prompts that the reward cannot score."""
    name = reward.name
    dimensions = {"pictures": (4, 5), "videos": (5,), "any": (4, 5)}[reward.takes]
    if images.ndim not in dimensions or images.shape[-3] != 3:
        shapes = "[B, F, 3, H, W]" if dimensions == (5,) else "[B, 3, H, W] or [B, F, 3, H, W]"
        raise UserError(f"Reward {name!r} takes images {shapes}, not {list(images.shape)}.")
    if images.numel() == 0:
        raise UserError(f"Reward {name!r} got no pixels: images {list(images.shape)}.")
    if not images.is_floating_point():
        raise UserError(f"Reward {name!r} takes float pixels in [0, 1], not {images.dtype}; divide by 255.")
    if len(prompts) != images.shape[0]:
        raise UserError(f"Reward {name!r} got {images.shape[0]} images and {len(prompts)} prompts.")
    low, high = torch.stack(images.detach().aminmax()).tolist()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # "not" so that NaN is caught too
        raise UserError(f"Reward {name!r} takes pixels in [0, 1]; these span [{low:.3g}, {high:.3g}].")
    if reward.needs_prompt:
        for index, prompt in enumerate(prompts):
            if not prompt.strip():
                raise UserError(f"Reward {name!r} needs a prompt; picture {index} has an empty one.")


def check_scores(scores: Any, prompts: Sequence[str], name: str) -> Tensor:
    """Scores as float32 [B], or a UserError about what was returned or the picture without a finite score."""
    scores = as_scores(scores, len(prompts), name)
    bad = (~torch.isfinite(scores.detach())).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"Reward {name!r} gave {scores[bad[0]].item()} for picture {bad[0]} (prompt {prompts[bad[0]]!r})."
        )
    return scores


def as_scores(returned: Any, count: int, name: str) -> Tensor:
    """What a reward returned for `count` pictures as a float32 tensor [count].

    A tensor, an array, or a list or tuple of numbers or of tensors []. Raises UserError for all else.
    """
    scores = returned
    if isinstance(scores, (list, tuple)) and scores and all(isinstance(score, Tensor) for score in scores):
        shapes = {tuple(score.shape) for score in scores}
        scores = torch.stack(list(scores)) if len(shapes) == 1 else None  # keeps the gradient
    elif isinstance(scores, (list, tuple)) or hasattr(scores, "__array__"):
        try:
            scores = torch.as_tensor(scores)
        except (TypeError, ValueError, RuntimeError):
            scores = None
    if not isinstance(scores, Tensor):
        raise _odd_return(name, _kind(returned), count)
    if scores.is_nested or scores.layout != torch.strided:
        raise _odd_return(name, "a sparse or nested tensor", count)
    if scores.is_meta:
        raise _odd_return(name, "a tensor without values (device meta)", count)
    if scores.is_complex():
        raise _odd_return(name, f"complex numbers ({scores.dtype})", count)
    if scores.shape != (count,):
        raise _odd_return(name, f"shape {list(scores.shape)}", count)
    return scores.float()


def _odd_return(name: str, what: str, count: int) -> UserError:
    return UserError(
        f"Reward {name!r} returned {what} for {count} pictures; it must return one real number per picture, "
        f"a tensor [{count}] or a list of {count} numbers."
    )


def _kind(returned: Any) -> str:
    """What a value is, in words."""
    if returned is None:
        return "None"
    article = "an" if type(returned).__name__[0].lower() in "aeiou" else "a"
    inner = {type(item).__name__ for item in returned} if isinstance(returned, (list, tuple)) else set()
    return f"{article} {type(returned).__name__}" + (f" of {' and '.join(sorted(inner))}" if inner else "")


def check_gradient(scores: Tensor, images: Tensor, name: str) -> None:
    """Refuse scores that should have a gradient with respect to the images and have none."""
    if not depends_on(scores, images):
        raise UserError(
            f"Reward {name!r} is declared differentiable, but no gradient of its scores reaches the pixels; "
            f"compute them from `images` with torch, or declare it with differentiable=False."
        )


def depends_on(scores: Tensor, images: Tensor) -> bool:
    """Whether the graph of `scores` leads back to `images`; reads the graph, computes nothing."""
    if scores is images:
        return scores.requires_grad
    source = images.grad_fn
    stack, visited = [scores.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if node is source or getattr(node, "variable", None) is images:  # the latter where images is a leaf
            return True
        stack.extend(parent for parent, _ in node.next_functions)
    return False
