"""Writes large JSON in pieces: a reply with half a million log probabilities is never in memory as a whole, and other requests run
between two pieces.

    JsonArray    an array that grows; items are kept as JSON, so that writing all of it again needs no encoding
    LateArray    an array that grows; its items, small ones, are created once, when they are written
    Late         one value that is created when it is written

All other values are encoded by msgspec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import msgspec

PIECE_BYTES = 32 << 10
GROUP = 256
"""items of a plain list that are encoded at once"""

encode_json = msgspec.json.Encoder().encode
"""JSON as bytes; NaN and infinities become null"""


class JsonArray:
    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._end = bytearray()

    def extend(self, items: Iterable[Any]) -> None:
        for item in items:
            self._end += b"," if self._pieces or self._end else b"["
            self._end += encode_json(item)
            if len(self._end) >= PIECE_BYTES:
                self._pieces.append(bytes(self._end))
                self._end.clear()

    def copy(self) -> Encoded:
        """The array as it is now, encoded."""
        end = bytes(self._end) + b"]"
        return Encoded([*self._pieces, end] if self._pieces or self._end else [b"[]"])


class Encoded:
    """A value that is JSON already."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = pieces


def cut(data: bytes) -> Iterator[bytes]:
    """JSON that is there as a whole, and is written by many at once: only pieces of it are copied for each."""
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]


class LateArray:
    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = [items]

    def extend(self, items: Iterable[Any]) -> None:
        self._items.append(items)

    def copy(self) -> LateArray:
        """Itself: it is written once."""
        return self

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._items)


class Late:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def json_pieces(value: Any, begin: bytes = b"", end: bytes = b"") -> Iterator[bytes]:
    """`value` as JSON between `begin` and `end`, in pieces of about PIECE_BYTES."""
    gathered, size = [begin], len(begin)
    for fragment in _fragments(value):
        gathered.append(fragment)
        size += len(fragment)
        if size >= PIECE_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    gathered.append(end)
    if last := b"".join(gathered):
        yield last


def encoded_within(value: Any, most: int) -> bytes | None:
    """`value` as JSON, or None as soon as it turns out to be longer than `most` bytes."""
    pieces, size = [], 0
    for piece in json_pieces(value):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            return None
    return b"".join(pieces)


def _fragments(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        start = b"{"
        for name, member in value.items():
            yield start + encode_json(name) + b":"
            yield from _fragments(member)
            start = b","
        yield b"}" if value else b"{}"
    elif isinstance(value, Encoded):
        yield from value.pieces
    elif isinstance(value, LateArray):
        start = b"["
        for item in value:
            yield start + encode_json(item)
            start = b","
        yield b"]" if start == b"," else b"[]"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        start = b"["
        for item in value:
            yield start
            yield from _fragments(item)
            start = b","
        yield b"]"
    elif isinstance(value, list) and len(value) > GROUP:
        for first in range(0, len(value), GROUP):
            yield (b"," if first else b"[") + encode_json(value[first : first + GROUP])[1:-1]
        yield b"]"
    elif isinstance(value, str) and len(value) > PIECE_BYTES:
        yield b'"'
        for at in range(0, len(value), PIECE_BYTES):
            yield encode_json(value[at : at + PIECE_BYTES])[1:-1]
        yield b'"'
    else:
        yield encode_json(value.make() if isinstance(value, Late) else value)
