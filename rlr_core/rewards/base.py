"""What a reward is: pictures and prompts in, one number per picture out, higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlr_core.errors import UserError


class Reward(ABC):
    """Scores pictures. Subclasses implement `score`; callers use the instance, which checks both sides."""

    name: str
    differentiable: bool = True
    """Whether the gradient with respect to the pixels is there and meaningful."""
    needs_prompt: bool = False
    """Whether an empty prompt is an error."""
    range: tuple[float, float] = (-float("inf"), float("inf"))
    """Plausible scores, for plots and for warnings."""
    surrogate: Reward | None = None
    """A differentiable stand-in that correlates with a black-box reward; it lowers the noise, never the aim."""

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images [B, 3, H, W] or [B, F, 3, H, W], float32 in [0, 1]."""

    def to(self, device: torch.device | str) -> Reward:
        """Move the reward's networks to a device."""
        return self

    def prepare(self, prompts: Sequence[str]) -> None:  # noqa: B027 - most rewards have nothing to prepare
        """Called once with every prompt of the run: embed them and drop the text tower."""

    def parts(self) -> dict[str, Tensor]:
        """Scores [B] of the parts of the last call by name, for logging; empty for a simple reward."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What the reward has learned or averaged during a run; saved and restored with the run."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - most rewards keep no state
        """Restore what `state_dict` returned."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B], float32. Raises UserError for input or output that is not what it should be."""
        check_images(images, prompts, self)
        scores = self.score(images, list(prompts))
        return check_scores(scores, prompts, self.name)


class CallableReward(Reward):
    """Any Python callable (images, prompts) -> [B] as a reward."""

    def __init__(
        self,
        function: Callable[[Tensor, Sequence[str]], Tensor],
        name: str | None = None,
        differentiable: bool | None = None,
    ):
        """differentiable: None finds out, by asking the function for a gradient once, at the first call."""
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        declared = differentiable if differentiable is not None else getattr(function, "differentiable", None)
        self.differentiable = self._probe() if declared is None else bool(declared)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images, prompts)

    def _probe(self) -> bool:
        """Whether the function's result on a small picture carries a gradient."""
        images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        try:
            with torch.enable_grad():
                scores = self.function(images, ["a photo"])
        except Exception:  # noqa: BLE001 - a function that cannot take this picture is treated as a black box
            return False
        return isinstance(scores, Tensor) and scores.requires_grad


def check_images(images: Tensor, prompts: Sequence[str], reward: Reward) -> None:
    """Refuse, in one sentence, pictures or prompts that no reward can score."""
    if images.ndim not in (4, 5) or images.shape[-3] != 3:
        raise UserError(
            f"Reward {reward.name!r} takes images [B, 3, H, W] or [B, F, 3, H, W], not {list(images.shape)}."
        )
    if len(prompts) != images.shape[0]:
        raise UserError(f"Reward {reward.name!r} got {images.shape[0]} images and {len(prompts)} prompts.")
    low, high = images.detach().amin().item(), images.detach().amax().item()
    if low < -1e-3 or high > 1 + 1e-3:
        raise UserError(
            f"Reward {reward.name!r} takes pixels in [0, 1]; these span [{low:.3g}, {high:.3g}]."
        )
    if reward.needs_prompt:
        for index, prompt in enumerate(prompts):
            if not prompt.strip():
                raise UserError(f"Reward {reward.name!r} needs a prompt; picture {index} has an empty one.")


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
