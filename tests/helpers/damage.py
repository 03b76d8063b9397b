"""Damaged files, the same ones from the same seed: bytes flipped, cut, doubled, headers made odd."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

ODD: list[Any] = [
    *(None, True, -1, 0, 1.5, 2**63, 10**30, float("inf"), "", "x", "\u0000", "999999999999"),
    *([], {}, [[]], {"a": {}}, [None], [-1, 2], [2**40, 2**40]),
]


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies of a safetensors file."""
    random_ = random.Random(seed)
    ways = (_flip, _cut, _insert, _header_value, _header_key, _metadata_value, _raw_header)
    for number in range(count):
        yield ways[number % len(ways)](data, random_)


def _flip(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random_.choice([1, 2, 10])):
        place = random_.randrange(min(len(data), random_.choice([8, 200, 4000, len(data)])))
        changed[place] = random_.randrange(256)
    return bytes(changed)


def _cut(data: bytes, random_: random.Random) -> bytes:
    return data[: random_.randrange(len(data))]


def _insert(data: bytes, random_: random.Random) -> bytes:
    place = random_.randrange(len(data))
    return data[:place] + random_.randbytes(random_.choice([1, 8, 100])) + data[place:]


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def _header_value(data: bytes, random_: random.Random) -> bytes:
    header, rest = _split(data)
    name = random_.choice(sorted(header))
    key = random_.choice(["shape", "dtype", "data_offsets", "all"])
    if key == "all" or name == "__metadata__":
        header[name] = random_.choice(ODD)
    else:
        header[name][key] = random_.choice(ODD)
    return _join(header, rest)


def _header_key(data: bytes, random_: random.Random) -> bytes:
    header, rest = _split(data)
    name = random_.choice(sorted(header))
    entry = header.pop(name)
    if random_.random() < 0.7:
        header[random_.choice(["", "x", "lora.", name * 3, name[:-1], "\u0000", name.upper()])] = entry
    return _join(header, rest)


def _metadata_value(data: bytes, random_: random.Random) -> bytes:
    header, rest = _split(data)
    metadata = dict(header.get("__metadata__") or {})
    name = random_.choice([*sorted(metadata), "format", "values"])
    odd = random_.choice(ODD)
    metadata[name] = odd if random_.random() < 0.3 else json.dumps(odd)
    header["__metadata__"] = metadata
    return _join(header, rest)


def _raw_header(data: bytes, random_: random.Random) -> bytes:
    _, rest = _split(data)
    deep = random_.choice([10, 1000, 200_000])
    plain = [b"{}", b"null", b"1e999", b'{"__metadata__": 3}', b"\xff" * 9]
    text = random_.choice([b"[" * deep, b'{"a":' * deep, *plain])
    return struct.pack("<Q", random_.choice([len(text), len(text) + 1, 0, 2**40, 2**63])) + text + rest
