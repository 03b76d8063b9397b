"""Networks that can be stopped between their blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def heard_inside(model: Any, check: Callable[[], None]) -> Iterator[None]:
    """Inside the `with`, `check` is called after every block of the model's networks, and on the way back
    through it: one evaluation of a big picture takes minutes. What it raises ends the evaluation there.

    model: of whatever class; its networks are its attributes and those in its `networks`.
    """

    def passed(block: nn.Module, inputs: Any, output: Any) -> None:
        check()
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.requires_grad:
            first.register_hook(lambda gradient: check())

    parts = [*model.networks.values(), *vars(model).values()]
    networks = [part for part in parts if isinstance(part, nn.Module)]
    lists = [part for network in networks for part in network.modules() if isinstance(part, nn.ModuleList)]
    blocks = {block for part in lists for block in part if block is not None}
    handles = [block.register_forward_hook(passed) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
