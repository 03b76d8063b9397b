"""From latents to rewards: decode and score a few pictures at a time, into the gradient of the latents.

Pictures are independent, so going through them in pieces is exact; the peak is that of one piece.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlr_core.common.pending import Pending
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.gradients.samples import Scores
from rlr_core.rewards.base import Reward


class Scorer:
    """Scores latents of known prompts with one reward; collects the reward's parts for the metrics."""

    def __init__(
        self,
        model: DiffusionModel,
        reward: Reward,
        decode_batch: int = 1,
        before_piece: Callable[[], None] = lambda: None,
        surrogate: bool = True,
    ):
        """decode_batch: pictures in a piece, but for a reward that wants whole (micro-)batches; before_piece:
        called ahead of each piece, may raise; surrogate: use a black-box reward's differentiable stand-in.
        """
        self.model, self.reward = model, reward
        self.decode_batch, self.before_piece = decode_batch, before_piece
        self.surrogate = None if reward.differentiable or not surrogate else reward.surrogate
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def pathwise(self) -> bool:
        """Whether there is any gradient to start from."""
        return self.reward.differentiable or self.surrogate is not None

    def __call__(self, latents: Tensor, prompts: Sequence[str], gradient: bool) -> Scores:
        """Scores of final latents [N, ...] of these prompts; gradient: whether one is asked for. Where scores
        are pending, all pieces are asked about before Pending is raised."""
        size = len(latents) if self.reward.whole_batch else self.decode_batch
        pieces = []
        pending: Pending | None = None
        for start in range(0, len(latents), size):
            self.before_piece()
            piece = slice(start, start + size)
            try:
                pieces.append(self._piece(latents[piece], prompts[piece], gradient))
            except Pending as asked:
                pending = asked
        if pending is not None:
            raise pending
        rewards, gradients, surrogates = zip(*pieces, strict=True)
        return Scores(
            torch.cat(rewards),
            torch.cat(gradients) if gradients[0] is not None else None,
            torch.cat(surrogates) if surrogates[0] is not None else None,
        )

    def _piece(
        self, latents: Tensor, prompts: Sequence[str], gradient: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Reward [N], gradient [N, ...] or None, surrogate [N] or None."""
        gradient = gradient and self.pathwise
        with torch.set_grad_enabled(gradient):
            leaf = latents.detach().requires_grad_(gradient)
            images = self.model.decode(leaf).clamp(0, 1)
            if self.surrogate is None:
                reward = differentiable = self.reward(images, prompts)
                self._log_parts(self.reward)
            else:
                with torch.no_grad():
                    reward = self.reward(images.detach(), prompts)
                    self._log_parts(self.reward)
                differentiable = self.surrogate(images, prompts) if gradient else reward
        if not gradient:
            return reward.detach(), None, None
        (of_latents,) = torch.autograd.grad(differentiable.sum(), leaf)
        return reward.detach(), of_latents, None if self.surrogate is None else differentiable.detach()

    def _log_parts(self, reward: Reward) -> None:
        for name, values in reward.parts().items():
            self._parts[name].append(values.detach().float().cpu())

    def parts(self) -> dict[str, float]:
        """Means of the reward's parts since the last call, by name."""
        means = {name: float(torch.cat(values).mean()) for name, values in self._parts.items()}
        self._parts.clear()
        return means
