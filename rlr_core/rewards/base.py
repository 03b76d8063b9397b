"""What a reward is: pictures and prompts in, one number per picture out, higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlr_core.errors import UserError

if TYPE_CHECKING:
    from rlr_core.rewards.files import WeightFile


class Reward(ABC):
    """Scores pictures. Subclasses implement `score`; callers use the instance, which checks both sides.

    A picture's score never depends on which pictures are scored beside it, so that a batch may be scored
    whole or picture by picture with the same result.
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
    surrogate: Reward | None = None
    """A differentiable stand-in that correlates with a black-box reward; it lowers the noise, not the aim."""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] or [B, F, 3, H, W] (see `takes`), float in [0, 1]."""

    def to(self, device: torch.device | str) -> Reward:
        """Move the reward's networks to a device."""
        return self

    def prepare(self, prompts: Sequence[str]) -> None:
        """Called once with every prompt of the run: embed them and drop the text tower."""

    def begin_update(self) -> None:
        """Called at the start of every update, before its pictures are scored."""

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
            return per_frame(self, images, prompts).mean(1)
        return check_scores(self.score(images, prompts), prompts, self.name)


class CallableReward(Reward):
    """Any Python callable (images, prompts) -> [B] as a reward."""

    takes = "any"

    def __init__(
        self,
        function: Callable[[Tensor, Sequence[str]], Tensor],
        name: str | None = None,
        differentiable: bool | None = None,
    ):
        """differentiable: None finds out now, by asking the function for the gradient of a grey picture."""
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        declared = differentiable if differentiable is not None else getattr(function, "differentiable", None)
        self.differentiable = self._probe() if declared is None else bool(declared)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)

    def _probe(self) -> bool:
        """Whether the function's result on a small picture carries a gradient."""
        with torch.inference_mode(False), torch.enable_grad():
            images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
            try:
                scores = self.function(images, ["a photo"])
            except Exception:
                return False
        return isinstance(scores, Tensor) and scores.requires_grad


def per_frame(reward: Reward, videos: Tensor, prompts: Sequence[str]) -> Tensor:
    """Scores [B, F] of every frame of videos [B, F, 3, H, W] by a reward for pictures."""
    frames = videos.shape[1]
    repeated = [prompt for prompt in prompts for _ in range(frames)]
    scores = check_scores(reward.score(videos.flatten(0, 1), repeated), repeated, reward.name)
    return scores.view(-1, frames)


def check_images(images: Tensor, prompts: Sequence[str], reward: Reward) -> None:
    """Refuse, in one sentence, pictures or prompts that the reward cannot score."""
    name = reward.name
    wanted = {"pictures": (4, 5), "videos": (5,), "any": (4, 5)}[reward.takes]
    if images.ndim not in wanted or images.shape[-3] != 3:
        shapes = "[B, F, 3, H, W]" if wanted == (5,) else "[B, 3, H, W] or [B, F, 3, H, W]"
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


def check_scores(scores: Tensor, prompts: Sequence[str], name: str) -> Tensor:
    """Scores as float32 [B], or a UserError about the shape or about the picture that has no finite score."""
    if not isinstance(scores, Tensor):
        scores = torch.as_tensor(scores)
    if scores.shape != (len(prompts),):
        raise UserError(
            f"Reward {name!r} returned shape {list(scores.shape)} for {len(prompts)} pictures; "
            f"it must return one number per picture, [{len(prompts)}]."
        )
    scores = scores.float()
    bad = (~torch.isfinite(scores.detach())).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"Reward {name!r} gave {scores[bad[0]].item()} for picture {bad[0]} (prompt {prompts[bad[0]]!r})."
        )
    return scores
