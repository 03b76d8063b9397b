"""The most memory that a computation needs at a time, told without computing it: on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STEP = 1.02
"""How exactly it is found."""


def peak_bytes(function: Callable[[], Tensor], weights: Iterable[Tensor] = ()) -> int:
    """Most bytes at a time, beside the weights, of a forward and backward pass of what `function` computes on
    the meta device."""
    with Peak(weights) as peak, flash_attention():
        function().sum().backward()
    return round(STEP * peak.most)


class Peak(TorchDispatchMode):
    """Bytes of all storages that are made inside: of those that live together, the most.

    What an operation makes of tensors of the same shapes and types is worked out once.
    """

    def __init__(self, weights: Iterable[Tensor]):
        """weights: what is there already, of which views will be made."""
        super().__init__()
        self.most = 0
        self._now = 0
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = _key(operation, args, kwargs)
        if key is not None and key in self._known:
            size, stride, dtype = self._known[key]
            result = torch.empty_strided(size, stride, dtype=dtype, device="meta")
            self._note(result.untyped_storage())
            return result
        result = operation(*args, **kwargs)
        if key is not None and _is_new(result, (args, kwargs)):
            self._known[key] = (result.shape, result.stride(), result.dtype)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._weights:
            return
        reference = StorageWeakRef(storage)
        if reference.cdata in self._alive and not self._alive[reference.cdata][0].expired():
            return
        self._alive[reference.cdata] = (reference, storage.nbytes())
        self._now += storage.nbytes()
        if self._now > STEP * self.most:  # perhaps: some may be gone
            self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
            self._now = sum(size for _, size in self._alive.values())
            self.most = max(self.most, self._now)


def _key(operation: Any, args: Any, kwargs: Any) -> Any:
    """What tells the shape of an operation's result; None where more than that does."""
    if operation._schema.is_mutable:
        return None
    try:
        key = (operation, _told(args), tuple((name, _told(value)) for name, value in kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


def _told(argument: Any) -> Any:
    """An argument without its numbers. Raises TypeError for a tensor whose numbers may count."""
    if isinstance(argument, Tensor):
        if argument.device.type != "meta":
            raise TypeError
        return (argument.shape, argument.stride(), argument.dtype)
    if isinstance(argument, list | tuple):
        return tuple(map(_told, argument))
    return (type(argument), argument)


def _is_new(result: Any, arguments: Any) -> bool:
    """Whether it is one tensor with a storage of its own, as large as its shape asks."""
    if not isinstance(result, Tensor) or result.device.type != "meta" or result.storage_offset():
        return False
    storage = result.untyped_storage()
    given = {leaf.untyped_storage()._cdata for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
    like = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device="meta")
    return storage._cdata not in given and storage.nbytes() == like.untyped_storage().nbytes()


@contextmanager
def flash_attention() -> Iterator[None]:
    """Attention that keeps no matrix of all pairs of tokens, as on a GPU; the meta device's own does."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, *args, **kwargs: _Attention.apply(
        query, key, value
    )
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
