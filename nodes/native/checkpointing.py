"""Gradient checkpointing for any network: its numbered blocks run again on the way back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .chunks import lists_of
from .ops import is_op

NUMBERED = re.compile(r"(^|[._])\d+$")
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Checkpointing:
    """Checkpoints around the outermost numbered blocks of a network while installed."""

    def __init__(self, network: nn.Module):
        self.network = network
        self._overridden: list[nn.Module] = []

    def install(self) -> None:
        """Put them on; blocks whose forward is already someone else's stay as they are."""
        self.remove()
        for block in blocks(self.network):
            if "forward" not in block.__dict__:
                block.__dict__["forward"] = _checkpointed(block.forward)
                self._overridden.append(block)

    def remove(self) -> None:
        """Take them off."""
        for block in self._overridden:
            block.__dict__.pop("forward", None)
        self._overridden = []


def blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules whose path ends in a number and that are called as a whole.

    Containers are looked into: some models call their parts one by one.
    """
    return list(_blocks(network, ""))


def _blocks(module: nn.Module, path: str) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        place = f"{path}.{name}" if path else name
        container = isinstance(child, CONTAINERS) or type(child) is nn.Module
        if (
            NUMBERED.search(place)
            and not container
            and not is_op(child)
            and any(True for _ in child.parameters())
        ):
            yield child
        else:
            yield from _blocks(child, place)


def keeps_state(network: nn.Module) -> bool:
    """Whether blocks remember frames between two calls in themselves, so that none may run a second time."""
    return any(hasattr(module, "temporal_cache_state") for module in network.modules())


def _checkpointed(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        left_behind = lists_of(args, kwargs)
        args = tuple(map(_as_now, args))
        kwargs = {name: _as_now(value) for name, value in kwargs.items()}
        output, now = checkpoint(_run, original, args, kwargs, use_reentrant=False, preserve_rng_state=False)
        for before, after in zip(left_behind, now, strict=True):
            before[:] = after
        return output

    return forward


def _as_now(value: Any) -> Any:
    """A list as it is before the block: what it leaves behind there must not show the second time."""
    return list(value) if isinstance(value, list) else value


def _run(original: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> tuple[Any, list[list]]:
    """A block on copies, and its lists afterwards: some add to their input in place."""
    args = tuple(map(_own, args))
    kwargs = {name: _own(value) for name, value in kwargs.items()}
    return original(*args, **kwargs), lists_of(args, kwargs)


def _own(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_floating_point() else value
    if isinstance(value, dict):
        return dict(value)
    return _as_now(value)
