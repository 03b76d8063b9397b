"""The optimizer, its learning rate, and the exponential moving average (EMA) of the adapter's weights."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from rlr_core.config import OptimizerConfig
from rlr_core.errors import UserError

GIVE_UP_AFTER = 5
"""Updates in a row whose gradient is not finite."""
REMEMBERED_NORMS = 32
"""Gradients whose median length says what is usual."""


class StepOutcome(NamedTuple):
    """What became of a gradient."""

    norm: float
    """Before clipping."""
    taken: bool


class AdapterOptimizer:
    """Takes steps along gradients of J: clips them, sets the learning rate, averages the weights."""

    def __init__(self, parameters: Sequence[Tensor], config: OptimizerConfig, steps: int):
        """steps: updates of the whole run, for the schedule."""
        self.parameters, self.config, self.steps = list(parameters), config, steps
        arguments = {
            "lr": config.learning_rate,
            "betas": (config.beta1, config.beta2),
            "weight_decay": config.weight_decay,
        }
        self.optimizer = _optimizer_class(config.name)(self.parameters, **arguments)
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema_decay else None
        self.taken = self.skipped = self.skipped_in_a_row = 0
        self.norms: deque[float] = deque(maxlen=REMEMBERED_NORMS)
        """Lengths of the last gradients, as they came."""

    @torch.no_grad()
    def keep_ema(self) -> None:
        """Let the parameters be their moving average from now on, where there is one."""
        if self.ema is not None:
            torch._foreach_copy_([p.data for p in self.parameters], self.ema)

    def learning_rate(self, step: int) -> float:
        """Of update `step`, counted from 0."""
        c = self.config
        rate = c.learning_rate * min(1.0, (step + 1) / (c.warmup + 1))
        left = 1 - max(0, step - c.warmup) / max(1, self.steps - c.warmup)
        if c.schedule == "linear":
            rate *= left
        elif c.schedule == "cosine":
            rate *= 0.5 * (1 - math.cos(math.pi * left))
        return rate

    def step(self, gradient: Sequence[Tensor], step: int) -> StepOutcome:
        """One optimizer step along `gradient`; one that is not finite is not taken."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradient))))
        value = float(norm)
        if not math.isfinite(value):
            self.skipped += 1
            self.skipped_in_a_row += 1
            return StepOutcome(value, False)
        self.skipped_in_a_row = 0
        self.norms.append(value)
        scale = -min(1.0, self._longest() / value) if value > 0 else -1.0
        for parameter, direction in zip(self.parameters, gradient, strict=True):
            parameter.grad = direction.to(parameter.dtype) * scale
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_ema()
        return StepOutcome(value, True)

    def _longest(self) -> float:
        """What a gradient is shortened to.

        A reward's gradient is heavy-tailed, and Adam remembers one that is a hundred times as long for as
        many updates.
        """
        c = self.config
        usual = statistics.median(self.norms) * c.max_grad_ratio if c.max_grad_ratio else math.inf
        return min(usual, c.max_grad_norm or math.inf)

    def check_not_stuck(self) -> None:
        """Raise UserError when too many steps in a row were not taken."""
        if self.skipped_in_a_row >= GIVE_UP_AFTER:
            raise UserError(
                f"{GIVE_UP_AFTER} updates in a row had gradients that are not finite: lower "
                f"optimizer.learning_rate, or use dtype=bf16 or fp32 if this model runs in fp16, which "
                f"overflows. The state before them is kept."
            )

    @torch.no_grad()
    def _update_ema(self) -> None:
        self.taken += 1
        if self.ema is not None:
            # while few steps are taken, the plain mean; later the running one
            decay = min(self.config.ema_decay, self.taken / (self.taken + 1))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def ema_weights(self) -> Iterator[None]:
        """The parameters are their moving average inside the `with`."""
        if self.ema is None:
            yield
            return
        own = [parameter.detach().clone() for parameter in self.parameters]
        torch._foreach_copy_(self.parameters, self.ema)
        try:
            yield
        finally:
            torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat: '<parameter>.<name>' of the optimizer, 'ema.<parameter>', and the counts of steps."""
        flat = {"counts": torch.tensor([self.taken, self.skipped, self.skipped_in_a_row])}
        for place, values in self.optimizer.state_dict()["state"].items():
            flat |= {f"{place}.{name}": v for name, v in values.items() if isinstance(v, Tensor)}
        flat |= {f"ema.{i}": average for i, average in enumerate(self.ema or [])}
        flat["norms"] = torch.tensor(list(self.norms), dtype=torch.float64)
        return flat

    @torch.no_grad()
    def load_state_dict(self, flat: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            place, _, name = key.partition(".")
            if place == "counts":
                self.taken, self.skipped, self.skipped_in_a_row = value.tolist()
            elif place == "norms":
                self.norms = deque(value.tolist(), REMEMBERED_NORMS)
            elif place == "ema" and self.ema is not None:
                self.ema[int(name)].copy_(value)
            else:
                state.setdefault(int(place), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _optimizer_class(name: str):
    if name == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optimizer.name is adamw8bit and bitsandbytes is not installed: "
            "pip install bitsandbytes, or use adamw."
        ) from error
    return AdamW8bit
