"""A file of packed weights.

    front   a page: magic | where the index begins, its length, its checksum | JSON: which model that is, for people
    data    pieces as they lie in memory, each from a multiple of 64 bytes on
    index   JSON: Index

The front is written last, so a file without one is not whole. Each piece has a checksum in the index, the index has one in the
front. They find damage; that nobody else writes such files is the business of the folder, which is private.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from sglang_anywhere_kernels import _cpu

from sglang.srt.checkpoint.cache_folder import ABOUT_AT, FRONT_BYTES

Bytes = npt.NDArray[np.uint8]

MAGIC = b"sglang packed 1\n"
_FRONT = struct.Struct("<16s3Q")
ALIGN = 64
MAX_INDEX_BYTES = 64 << 20
WRITE_BYTES = 4 << 20


class Piece(msgspec.Struct, frozen=True):
    """`what`: what was packed, and how: names, formats and shapes in order."""

    what: str
    start: int
    num_bytes: int
    checksum: int


class Index(msgspec.Struct, frozen=True):
    """`tensors`: those that were read, by name: format and shape after conversion."""

    key: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    pieces: tuple[Piece, ...]


class DamagedFile(Exception):
    """A file that is not what was written."""


def checksum(data: Bytes) -> int:
    """Of 64 bits; other threads run meanwhile."""
    return int(_cpu.checksum(data))


def read_index(fd: int) -> Index:
    """Raises DamagedFile, or OSError."""
    size = os.fstat(fd).st_size
    front = os.pread(fd, _FRONT.size, 0)
    if len(front) < _FRONT.size:
        raise DamagedFile("it is too short")
    magic, start, length, expected = _FRONT.unpack(front)
    if magic != MAGIC:
        raise DamagedFile("it was not finished, or is of another version")
    if length > MAX_INDEX_BYTES or start + length > size:
        raise DamagedFile("it is cut off")
    if start + length < size:  # all of it would be read
        raise DamagedFile("something follows it")
    raw = os.pread(fd, length, start)
    if len(raw) != length or checksum(np.frombuffer(raw, np.uint8)) != expected:
        raise DamagedFile("its index is not what was written")
    try:
        index = msgspec.json.decode(raw, type=Index)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DamagedFile(f"its index is not readable ({error})") from error
    if any(not FRONT_BYTES <= p.start <= p.start + p.num_bytes <= start or p.start % ALIGN for p in index.pieces):
        raise DamagedFile("its index is not possible")
    return index


def write_file(fd: int, about: Mapping[str, str], index: Index, pieces: Sequence[tuple[str, Any]]) -> Iterator[int]:
    """Writes a whole file, `index` without its pieces: (what, weight of the native kernels). Yields the bytes written now and
    then; who stops asking leaves a file that is not whole. Raises OSError."""
    at, done = FRONT_BYTES, []
    for what, weight in pieces:
        data: Bytes = weight.bytes()
        done.append(Piece(what, at, len(data), checksum(data)))
        for begin in range(0, len(data), WRITE_BYTES):
            yield _write(fd, data[begin : begin + WRITE_BYTES].data, at + begin)
        at += -(-len(data) // ALIGN) * ALIGN
    raw = msgspec.json.encode(msgspec.structs.replace(index, pieces=tuple(done)))
    yield _write(fd, memoryview(raw), at)
    front = _FRONT.pack(MAGIC, at, len(raw), checksum(np.frombuffer(raw, np.uint8))).ljust(ABOUT_AT, b"\0")
    front += msgspec.json.encode(about)
    assert len(front) <= FRONT_BYTES, "what is told of a model is short"
    yield _write(fd, memoryview(front.ljust(FRONT_BYTES, b"\0")), 0)


def _write(fd: int, data: memoryview, at: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], at + written)
    return written
