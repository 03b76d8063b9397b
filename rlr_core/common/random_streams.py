"""Every random number of a run, by name: a stream is a function of the seed, a name and counters alone.

Two streams share no numbers unless seed, name and counters are all the same, so that no use of randomness
can run into another's, and a run that goes on draws what it would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """The random numbers called `name`, for these counters (an update, an epoch, a trajectory).

    seed, counters: whole numbers from -2**63 to 2**64 - 1.
    """
    return np.random.default_rng(_sequence(seed, name, counters))


def seeds(seed: int, name: str, count: int, *counters: int) -> np.ndarray:
    """`count` seeds, uint64, of the stream called `name`."""
    return _sequence(seed, name, counters).generate_state(count, np.uint64)


def torch_stream(seed: int, name: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The same for torch."""
    (start,) = seeds(seed, name, 1, *counters)
    return torch.Generator(device).manual_seed(int(start >> np.uint64(1)))


def _sequence(seed: int, name: str, counters: tuple[int, ...]) -> np.random.SeedSequence:
    """Words of fixed places: two for the seed, eight for the name, two a counter."""
    digest = hashlib.sha256(name.encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]
    numbers = [part for number in counters for part in _halves(number)]
    return np.random.SeedSequence([*_halves(seed), *words, *numbers, len(counters)])


def _halves(number: int) -> tuple[int, int]:
    number = int(number) & (2**64 - 1)
    return number & (2**32 - 1), number >> 32
