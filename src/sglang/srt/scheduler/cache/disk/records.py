"""Records: keys and values of `run` tokens, named by everything that went before them.

    root key    fingerprint, whose records they are, salt
    key i       hash of key i - 1 and of ids [run * i, run * (i + 1))

Equal keys mean equal prefixes; the ids of a record are compared all the same. A changed byte of an entry or of a payload is
found by its CRC.

The state that recurrent layers have after p tokens lies in as many records as it takes, of the same size (state_records.py):

    ids of each   those after the last whole record before p, then NO_TOKEN
    key 0         hash of the key of that record and of the ids;  key i: of key i - 1 and of the ids
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.cache_folder import open_regular
from sglang.srt.forward_batch import Int32Array

VERSION = 1
KEY_BYTES = 32
MAGIC = b"SGLKV\0"
_HEADER = struct.Struct("<6sHIQ32sI")
HEADER_BYTES = _HEADER.size
NO_DIGESTS: Mapping[int, bytes] = {}
NO_TOKEN = -(1 << 31)
"""in a record's ids: no token, and no row of an image (names.py). Records of states end with it"""
_NO_TOKEN = struct.pack("<i", NO_TOKEN)


class Entry(NamedTuple):
    """What is known of a record without its payload. `ids`: its tokens, int32; `crc`: of its key and payload."""

    key: bytes
    parent: bytes
    ids: bytes
    crc: int

    @property
    def is_state(self) -> bool:
        """Whether it is a part of a state."""
        return self.ids.endswith(_NO_TOKEN)

    @property
    def num_tokens(self) -> int:
        """Of a part of a state: those among its ids."""
        return int(np.argmax(np.frombuffer(self.ids, "<i4") == NO_TOKEN))


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


def read_form(path: Path) -> RecordFormat | None:
    """The format of a segment, by its beginning; None for what is none."""
    try:
        with open(open_regular(path), "rb") as file:
            data = file.read(HEADER_BYTES)
    except OSError:
        return None
    if len(data) != HEADER_BYTES:
        return None
    _, _, run, payload_bytes, fingerprint, _ = _HEADER.unpack(data)
    form = RecordFormat(fingerprint, run, payload_bytes)
    return form if form.header() == data else None


def layout_fingerprint(fingerprint: str, layout: str) -> bytes:
    """The fingerprint of records: the process's, and the layout of its pool."""
    return hashlib.blake2b(f"{fingerprint}\0{layout}\0{VERSION}".encode(), digest_size=32).digest()


def root_key(fingerprint: bytes, is_shared: bool, salt: str | None, adapter: str | None = None) -> bytes:
    """The key before the first record of a namespace. Records that all clients share and those of single clients never meet,
    whatever salt a client sends; nor do those of different adapters (`adapter`: digest of its content)."""
    name = b"\0" if salt is None else b"\1" + salt.encode("utf-8", "surrogatepass")
    if adapter is not None:
        name = b"\2" + hashlib.blake2b(adapter.encode(), digest_size=32).digest() + name
    return hashlib.blake2b(bytes([is_shared]) + name, digest_size=KEY_BYTES, key=fingerprint).digest()


def chain_keys(
    root: bytes, ids: Int32Array, run: int, known: Sequence[bytes] = (), digests: Mapping[int, bytes] = NO_DIGESTS
) -> list[bytes]:
    """The keys of all whole records of a prefix. `known`: the first of them; `digests`: by position, of what begins there and is no
    token (names.py)."""
    data = np.ascontiguousarray(ids, dtype="<i4").tobytes()
    keys = list(known[: len(ids) // run])
    key = keys[-1] if keys else root
    by_record: dict[int, bytes] = {}
    for at in sorted(digests):
        by_record[at // run] = by_record.get(at // run, b"") + at.to_bytes(8, "little") + digests[at]
    for i in range(len(keys), len(ids) // run):
        part = data[4 * run * i : 4 * run * (i + 1)] + by_record.get(i, b"")
        key = hashlib.blake2b(key + part, digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


def state_keys(parent: bytes, ids: bytes, num: int, digests: bytes = b"") -> list[bytes]:
    """The keys of the `num` records of a state, after the record `parent`. `ids`: of each of them; `digests`: of what begins among these
    and is no token."""
    keys, key = list[bytes](), parent
    for _ in range(num):
        key = hashlib.blake2b(key + ids + digests, digest_size=KEY_BYTES, person=b"state").digest()
        keys.append(key)
    return keys


def payload_crc(key: bytes, payload: npt.NDArray[np.uint8]) -> int:
    return zlib.crc32(payload.data, zlib.crc32(key))
