"""Records in host memory: a tier between a GPU's pool and the disk.

    the pool      --written--> host memory --written through, or driven out--> disk
    the pool <-----read------- host memory <---------read, and kept----------- disk

What was not used for longest makes room. The scheduler's thread only looks at the index and waits for nothing; the two side threads
copy under the lock.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import Int32Array
from sglang.srt.scheduler.cache.disk.records import Entry, RecordFormat
from sglang.srt.scheduler.cache.disk.store import Record, RecordStore, follow

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class HostRecord:
    """A record that is, or was, in host memory."""

    entry: Entry


class HostStore:
    """`arena` [num_records, payload_bytes]: the memory. `below`: the disk; `writes_through`: whether it gets at once what is written
    here, or what is driven out."""

    def __init__(self, form: RecordFormat, arena: Bytes, below: RecordStore | None = None, writes_through: bool = True) -> None:
        self.form = form
        self._arena = arena.reshape(-1, form.payload_bytes)
        self._free = list(range(len(self._arena) - 1, -1, -1))
        self._index: OrderedDict[bytes, tuple[Entry, int]] = OrderedDict()  # least recently used first
        self._lock, self._below_lock = threading.Lock(), threading.Lock()
        self._below, self._writes_through = below, writes_through
        self._num_written = 0
        self.tiers = ("host", *(below.tiers if below is not None else ()))

    # --- looking: the scheduler's thread ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._index) + (len(self._below) if self._below is not None else 0)

    @property
    def writes(self) -> bool:
        return bool(len(self._arena))

    @property
    def is_stale(self) -> bool:
        return self._below is not None and self._below.is_stale

    @property
    def counts(self) -> dict[str, int]:
        """Of the disk, with what is here."""
        below = self._below.counts if self._below is not None else {}
        held = len(self._index)
        return below | {"host_records": held, "host_bytes": held * self.form.payload_bytes, "host_written": self._num_written}

    def has(self, key: bytes) -> bool:
        return key in self._index or (self._below is not None and self._below.has(key))

    def get(self, key: bytes) -> HostRecord | Record | None:
        """Where a record is: here, or else below."""
        known = self._index.get(key)
        if known is not None:
            return HostRecord(known[0])
        return self._below.get(key) if self._below is not None else None

    def find(self, keys: Sequence[bytes], ids: Int32Array, start: int) -> list[HostRecord | Record]:
        """As RecordStore.find."""
        return follow(self.get, keys, ids, start, self.form.run)

    def tail_lens(self, key: bytes) -> Iterable[int]:
        """Of the disk alone: no model with states has its pool elsewhere than in host memory."""
        return self._below.tail_lens(key) if self._below is not None else ()

    def tier_of(self, record: HostRecord | Record) -> str:
        return "host" if isinstance(record, HostRecord) else "disk"

    # --- the side threads ---------------------------------------------------------------------------------------------------------

    def read(self, record: HostRecord | Record, out: Bytes) -> bool:
        """Fills `out` with a record's payload, wherever it is now."""
        key = record.entry.key
        with self._lock:
            if (known := self._index.get(key)) is not None:
                out[:] = self._arena[known[1]]
                self._index.move_to_end(key)
                return True
        found = self._below.get(key) if self._below is not None else None
        if self._below is None or found is None or not self._below.read(found, out):
            return False
        self._keep(found.entry, out)
        return True

    def append(self, entry: Entry, payload: Bytes) -> bool:
        """Adds a record. False if there is no room at all."""
        if not self.writes:
            return False
        self._keep(entry, payload)
        self._num_written += 1
        if self._writes_through:
            self._write_below(entry, payload)
        return True

    def _keep(self, entry: Entry, payload: Bytes) -> None:
        driven_out: tuple[Entry, Bytes] | None = None
        with self._lock:
            if entry.key in self._index:
                self._index.move_to_end(entry.key)
                return
            if self._free:
                place = self._free.pop()
            else:
                _, (old, place) = self._index.popitem(last=False)
                if not self._writes_through and self._below is not None:
                    driven_out = old, self._arena[place].copy()
            self._arena[place] = payload
            self._index[entry.key] = entry, place
        if driven_out is not None:
            self._write_below(*driven_out)

    def _write_below(self, entry: Entry, payload: Bytes) -> bool:
        if self._below is None:
            return False
        with self._below_lock:  # one thread at a time appends
            return self._below.has(entry.key) or self._below.append(entry, payload)

    def rescan(self) -> None:
        """Looks for what another server has written."""
        if self._below is not None:
            self._below.rescan()

    # --- the end ------------------------------------------------------------------------------------------------------------------

    @property
    def survives(self) -> bool:
        return self._below is not None

    def settle(self, until: float) -> None:
        """Writes to the disk what is only here, last used first, until then (time.monotonic)."""
        if self._below is None:
            return
        with self._lock:
            keys = [key for key in reversed(self._index) if not self._below.has(key)]
        for key in keys:
            with self._lock:
                known = self._index.get(key)
                payload = self._arena[known[1]].copy() if known is not None else None
            if time.monotonic() > until or (known and payload is not None and not self._write_below(known[0], payload)):
                return

    def close(self) -> None:
        if self._below is not None:
            self._below.close()
