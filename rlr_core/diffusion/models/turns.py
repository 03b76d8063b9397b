"""Networks that take turns on a device: one at a time is there, the others' weights wait in main memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Turns:
    """Frozen networks of which one at a time has its weights on the device. What trains stays there."""

    def __init__(self, networks: Mapping[str, nn.Module], device: torch.device):
        """networks: by name; all of them leave the device."""
        self.device = device
        self.there: str | None = None
        """The one whose turn it is."""
        self._weights: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        for name, network in networks.items():
            for buffer in network.buffers():
                buffer.data = buffer.data.to(device)
            frozen = [weight for weight in network.parameters() if not weight.requires_grad]
            self._weights[name] = [(weight, weight.data.to("cpu")) for weight in frozen]
            self._send_home(name)

    def bring(self, name: str) -> None:
        """Let this network's weights be on the device, and no other's."""
        if name == self.there:
            return
        self.send_home()
        for weight, home in self._weights[name]:
            weight.data = home.to(self.device, copy=True)
        self.there = name

    def send_home(self) -> None:
        """Take all of them off the device. Nothing is copied: they were never changed."""
        if self.there is not None:
            self._send_home(self.there)
            self.there = None

    def bytes_of(self, name: str) -> int:
        """What a network's weights take."""
        return sum(home.nbytes for _, home in self._weights[name])

    def _send_home(self, name: str) -> None:
        for weight, home in self._weights[name]:
            weight.data = home
