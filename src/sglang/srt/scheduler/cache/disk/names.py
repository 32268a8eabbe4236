"""What a prefix is called on disk: by ids and digests that mean the same in every process.

    in the tree   15  22  -9  -8  -7  31  m  8  40      -9: the first row of an image; m: where an activated adapter begins to act
    on disk       15  22   a   b   c  31  d  8  40      a, b, c: made of the image's digest and the row; d: of the adapter's
                           digest             digest    go into the keys of the records where they stand

The tree's ids of images (media/arriving.py) and adapters (scheduler/adapters.py) are one process's own. What they stand for has a
digest of its content, and that goes into the key of a record whole; keys are chained, so that all later ones depend on it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from sglang.srt.forward_batch import Int32Array
from sglang.srt.scheduler.cache.disk.records import chain_keys, root_key
from sglang.srt.scheduler.cache.radix_cache import MARK, Salt

ImageOf = Callable[[int], tuple[bytes, int, int] | None]
"""of a negative id: the image's digest, which of its rows it is, and how many rows follow it; None for one that is not known"""
AdapterOf = Callable[[int], str | None]
"""of an adapter's uid: the digest of its content"""
_LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class Prefix:
    """A prefix as every process calls it. `root`: the key before its first record; `digests`: by position, of what begins there and is
    no token."""

    root: bytes
    ids: Int32Array
    digests: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> Prefix:
        """Its first ids, in memory of their own."""
        return Prefix(self.root, self.ids[:length].copy(), self.digests)

    def keys(self, run: int, known: list[bytes] | tuple[bytes, ...] = ()) -> list[bytes]:
        """The keys of its whole records. `known`: the first of them."""
        return chain_keys(self.root, self.ids, run, known, self.digests)

    def digests_in(self, start: int, end: int) -> bytes:
        """What begins at positions [start, end) and is no token, as a part of a key."""
        return b"".join(at.to_bytes(8, "little") + self.digests[at] for at in sorted(self.digests) if start <= at < end)


class Names:
    """Names prefixes for one fingerprint. `is_shared`: all clients share the records that have one salt."""

    def __init__(self, fingerprint: bytes, is_shared: bool) -> None:
        self._fingerprint, self._is_shared = fingerprint, is_shared
        self.image_of: ImageOf = lambda tree_id: None
        self.adapter_of: AdapterOf = lambda uid: None

    def prefix(self, ids: Int32Array, salt: Salt) -> Prefix:
        """What can be named of the prefix, which ends before the first id that cannot."""
        digest = None
        if isinstance(salt, tuple):
            uid, salt = salt
            if (digest := self.adapter_of(uid)) is None:
                ids = ids[:0]
        root = root_key(self._fingerprint, self._is_shared, salt, digest)
        own = np.flatnonzero((ids < 0) | (ids >= MARK)).astype(np.int32)
        return Prefix(root, ids) if not len(own) else self._translated(root, ids, own)

    def _translated(self, root: bytes, ids: Int32Array, own: Int32Array) -> Prefix:
        """`own`: places of ids that are this process's."""
        named, digests = ids.copy(), dict[int, bytes]()
        for start, end in _stretches(ids, own):
            at = start
            while at < end:
                found = self._named(int(ids[at]))
                if found is None:
                    return Prefix(root, named[:at], digests)
                digest, row, num_more = found
                num = min(end - at, 1 + num_more)
                digests[at] = digest + row.to_bytes(8, "little")
                named[at : at + num] = _row_ids(digest, row, num)
                at += num
        return Prefix(root, named, digests)

    def _named(self, tree_id: int) -> tuple[bytes, int, int] | None:
        """Digest, row and number of rows that follow, of an image or an adapter's mark."""
        if tree_id < 0:
            image = self.image_of(tree_id)
            return image and (_digest(b"image", image[0]), *image[1:])
        adapter = self.adapter_of(tree_id - MARK)
        return None if adapter is None else (_digest(b"adapter", adapter.encode()), 0, 0)


def _digest(kind: bytes, content: bytes) -> bytes:
    """Of one size, and never the same for two kinds."""
    return hashlib.blake2b(content, digest_size=32, person=kind).digest()


def _stretches(ids: Int32Array, own: Int32Array) -> Iterator[tuple[int, int]]:
    """[start, end) of places whose ids count up by one."""
    breaks = np.flatnonzero((np.diff(own) != 1) | (np.diff(ids[own]) != 1)) + 1
    for part in np.split(own, breaks):
        yield int(part[0]), int(part[-1]) + 1


def _row_ids(digest: bytes, row: int, num: int) -> Int32Array:
    """Negative numbers that stand for the rows: to be compared as ids are."""
    first = int.from_bytes(digest[:8], "little")
    rows = (np.arange(row, row + num, dtype=np.int64) * 0x9E3779B1 + first % _LARGEST) % _LARGEST
    return (-1 - rows).astype(np.int32)
