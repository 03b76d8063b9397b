"""The policy that samples: the parameters as they were, or a slow average of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Snapshot:
    """theta_old: a copy of the parameters that follows them at its own pace."""

    def __init__(self, parameters: Sequence[Tensor]):
        self.parameters = list(parameters)
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.updates = 0
        """How often it followed."""

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """theta_old = decay theta_old + (1 - decay) theta. decay 0 is a copy, bit-equal."""
        now = [parameter.detach() for parameter in self.parameters]
        if decay == 0:
            torch._foreach_copy_(self.values, now)
        else:
            torch._foreach_lerp_(self.values, now, 1 - decay)
        self.updates += 1

    def is_current(self) -> bool:
        """Whether it is the parameters, bit by bit."""
        return all(map(torch.equal, self.values, self.parameters))

    @contextmanager
    @torch.no_grad()
    def installed(self) -> Iterator[None]:
        """The parameters are the snapshot's inside the `with`."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        torch._foreach_copy_([parameter.data for parameter in self.parameters], self.values)
        try:
            yield
        finally:
            torch._foreach_copy_([parameter.data for parameter in self.parameters], own)

    def state_dict(self) -> dict[str, Tensor]:
        """'<place>' of each value, and how often it followed."""
        state = {str(place): value.clone() for place, value in enumerate(self.values)}
        return state | {"updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for place, value in enumerate(self.values):
            value.copy_(state[str(place)])
