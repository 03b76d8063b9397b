"""Several processes as one: each takes a slice of the batch, sums go over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class World:
    """The processes of a run; one of them unless `accelerate launch` (or torchrun) started more."""

    def __init__(self) -> None:
        from accelerate import PartialState

        self._state = PartialState()
        self.rank = self._state.process_index
        self.size = self._state.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def slice(self, count: int) -> range:
        """This process's share of 0..count-1, contiguous."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes; the tensor itself when there is one."""
        if self.size == 1:
            return tensor
        total = tensor.to(self._state.device, copy=True)  # NCCL sums on the GPU only
        torch.distributed.all_reduce(total)
        return total.to(tensor.device)

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors of one type in place over the processes, in one message."""
        if self.size > 1 and tensors:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            torch.distributed.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank. Values are pickled: for small and rare things."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Let every process arrive here."""
        self._state.wait_for_everyone()


class Alone(World):
    """A world of one process that asks nothing of the environment."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def wait(self) -> None:
        return None
