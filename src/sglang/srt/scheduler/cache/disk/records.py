"""Records: keys and values of `run` tokens, named by everything that went before them.

    root key    fingerprint, whose records they are, salt
    key i       hash of key i - 1 and of ids [run * i, run * (i + 1))

Equal keys mean equal prefixes; the ids of a record are compared all the same. A changed byte of an entry or of a payload is
found by its CRC.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import Int32Array

VERSION = 1
KEY_BYTES = 32
MAGIC = b"SGLKV\0"
_HEADER = struct.Struct("<6sHIQ32sI")
HEADER_BYTES = _HEADER.size


class Entry(NamedTuple):
    """What is known of a record without its payload. `ids`: its tokens, int32; `crc`: of its key and payload."""

    key: bytes
    parent: bytes
    ids: bytes
    crc: int


@dataclass(frozen=True)
class RecordFormat:
    """What all records of a folder have in common. `payload_bytes`: of a record; `fingerprint`: 32 bytes, of all that decides
    which bits these are."""

    fingerprint: bytes
    run: int
    payload_bytes: int

    @property
    def entry_bytes(self) -> int:
        return self._entry.size + 4

    @property
    def _entry(self) -> struct.Struct:
        return struct.Struct(f"<{KEY_BYTES}s{KEY_BYTES}s{4 * self.run}sI")

    def header(self) -> bytes:
        """The beginning of a segment."""
        data = _HEADER.pack(MAGIC, VERSION, self.run, self.payload_bytes, self.fingerprint, 0)[:-4]
        return data + struct.pack("<I", zlib.crc32(data))

    def encode(self, entry: Entry) -> bytes:
        data = self._entry.pack(*entry)
        return data + struct.pack("<I", zlib.crc32(data))

    def decode(self, data: bytes) -> Entry | None:
        """None for an entry that is not what was written."""
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            return None
        return Entry(*self._entry.unpack(data[:-4]))


def layout_fingerprint(fingerprint: str, layout: str) -> bytes:
    """The fingerprint of records: the process's, and the layout of its pool."""
    return hashlib.blake2b(f"{fingerprint}\0{layout}\0{VERSION}".encode(), digest_size=32).digest()


def root_key(fingerprint: bytes, is_shared: bool, salt: str | None) -> bytes:
    """The key before the first record of a namespace. Records that all clients share and those of single clients never meet,
    whatever salt a client sends."""
    name = b"\0" if salt is None else b"\1" + salt.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(bytes([is_shared]) + name, digest_size=KEY_BYTES, key=fingerprint).digest()


def chain_keys(root: bytes, ids: Int32Array, run: int, known: Sequence[bytes] = ()) -> list[bytes]:
    """The keys of all whole records of a prefix. `known`: the first of them."""
    data = np.ascontiguousarray(ids, dtype="<i4").tobytes()
    keys = list(known[: len(ids) // run])
    key = keys[-1] if keys else root
    for i in range(len(keys), len(ids) // run):
        key = hashlib.blake2b(key + data[4 * run * i : 4 * run * (i + 1)], digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


def payload_crc(key: bytes, payload: npt.NDArray[np.uint8]) -> int:
    return zlib.crc32(payload.data, zlib.crc32(key))
