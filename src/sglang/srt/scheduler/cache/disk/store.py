"""All records of one fingerprint.

The scheduler finds records, the reader's thread reads them, the writer's thread appends; `_lock` guards what they share, and is
never held while a file is read or written. Errors of the file system end here: a record that cannot be read is forgotten, and
when nothing can be written one warning says so.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.cache_folder import (
    LEAST_FREE,
    WriterLock,
    folder_bytes,
    open_private,
    remove_oldest,
    size_limit,
    write_about,
)
from sglang.srt.errors import ConfigError
from sglang.srt.forward_batch import Int32Array
from sglang.srt.scheduler.cache.disk.records import HEADER_BYTES, Entry, RecordFormat, payload_crc
from sglang.srt.scheduler.cache.disk.segments import PayloadReader, Segment

logger = logging.getLogger("sglang")

Bytes = npt.NDArray[np.uint8]
SEGMENT_BYTES = 64 << 20
NUM_SEGMENTS = 64
"""a segment has at least SEGMENT_BYTES, or such a share of the limit"""
MAX_RECORDS = 1 << 18
"""records of one fingerprint: each takes some 400 bytes of memory"""
RETRY_SECONDS = 60.0
RESCAN_SECONDS = 10.0
TOUCH_SECONDS = 60.0


@dataclass(frozen=True)
class Record:
    """Where a record lies."""

    entry: Entry
    segment: Segment
    at: int


@dataclass(frozen=True)
class DiskRoom:
    """`limit`: bytes that the folder may hold; None: a share of the free disk. `least_free`: bytes of the disk left to others."""

    limit: int | None = None
    least_free: int = LEAST_FREE
    segment_bytes: int = SEGMENT_BYTES


class Kept(Protocol):
    @property
    def entry(self) -> Entry: ...


K = TypeVar("K", bound=Kept)


def follow(get: Callable[[bytes], K | None], keys: Sequence[bytes], ids: Int32Array, start: int, run: int) -> list[K]:
    """Records `start`, `start + 1`, ... of a prefix, as far as they are known, have its ids and follow one another."""
    data, size = np.ascontiguousarray(ids, dtype="<i4").tobytes(), 4 * run
    found: list[K] = []
    for i in range(start, len(keys)):
        record = get(keys[i])
        if record is None or record.entry.ids != data[size * i : size * (i + 1)]:
            break
        if i and record.entry.parent != keys[i - 1]:
            break
        found.append(record)
    return found


class Store(Protocol):
    """Records of one fingerprint, in one tier or several. The scheduler's thread looks, the side threads read and append. A record that
    was found is to be read by the store that found it."""

    form: RecordFormat
    tiers: tuple[str, ...]
    """as metrics call them"""

    @property
    def survives(self) -> bool:
        """Whether another process finds what is kept."""
        ...

    @property
    def writes(self) -> bool:
        """Whether something may be appended now."""
        ...

    @property
    def is_stale(self) -> bool:
        """Whether `rescan` is due."""
        ...

    @property
    def counts(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...

    def has(self, key: bytes) -> bool: ...

    def find(self, keys: Sequence[bytes], ids: Int32Array, start: int) -> Sequence[Any]:
        """Records `start`, `start + 1`, ... of a prefix, as far as they follow one another. `keys`, `ids`: of all of it."""
        ...

    def tail_lens(self, key: bytes) -> Iterable[int]:
        """How many tokens after the record `key` there are states, or parts of some."""
        ...

    def tier_of(self, record: Any) -> str:
        """Where a record is."""
        ...

    def read(self, record: Any, out: Bytes) -> bool:
        """Fills `out` with a record's payload. False if it is not there any more, or not what was written."""
        ...

    def append(self, entry: Entry, payload: Bytes) -> bool:
        """Adds a record. False if it cannot be written now."""
        ...

    def settle(self, until: float) -> None:
        """Has all records survive, as far as there is time (time.monotonic)."""
        ...

    def rescan(self) -> None: ...

    def close(self) -> None: ...


class RecordStore:
    """Owner of the records below `folder`. Without the lock it only reads, and looks for what the writer has added."""

    tiers: tuple[str, ...] = ("disk",)
    survives = True

    def __init__(self, folder: Path, form: RecordFormat, room: DiskRoom, about: dict[str, Any]) -> None:
        """Raises ConfigError for a folder that is not private, and for a limit that holds nothing. Where the file system fails, one
        warning says so and nothing is kept."""
        self.form = form
        self.num_damaged = 0
        """records that were not what had been written"""
        self.num_written = 0
        self._dir, self._folder, self._room = folder, folder / form.fingerprint.hex()[:32], room
        self._lock = threading.Lock()
        self._index: dict[bytes, Record] = {}
        self._tail_lens: dict[bytes, set[int]] = {}  # tokens of records of states, by their parents
        self._segments: dict[int, Segment] = {}
        self._reader = PayloadReader()
        self._writer: WriterLock | None = None
        self._limit = self._last_number = 0
        self._retry_at = 0.0
        self._was_told = False
        self._scanned_at = time.monotonic()
        try:
            self._open(about)
        except OSError as error:
            self._fail(f"--cache-dir {folder} cannot be used ({error.strerror or error})")

    def _open(self, about: dict[str, Any]) -> None:
        open_private(self._dir)
        self._limit = size_limit(self._dir, self._room.limit)
        self._segment_bytes = max(min(self._room.segment_bytes, self._limit // 4), self._limit // NUM_SEGMENTS)
        least = 8 * (self.form.payload_bytes + self.form.entry_bytes + HEADER_BYTES)
        if self._limit < least and self._room.limit is not None:
            raise ConfigError(f"--cache-disk {self._limit} is too small: records of this model need at least {least} bytes")
        if self._folder.is_dir() or self._limit >= least:
            self._open_folder(about)
        else:
            self._fail(f"the disk of --cache-dir {self._dir} is full")

    def _open_folder(self, about: dict[str, Any]) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._writer = WriterLock.take(self._folder)
        except OSError as error:
            self._fail(f"nothing can be written to --cache-dir {self._dir} ({error.strerror or error}): it is only read")
        else:
            if self._writer is None:
                self._fail(f"another server writes to --cache-dir {self._dir}: this one only reads it")
        if self._folder.is_dir():
            self._scan()
        if self._writer is not None:
            self._trim(about)

    def _trim(self, about: dict[str, Any]) -> None:
        """The writer's first steps: torn ends are cut, and what is too much goes."""
        try:
            write_about(self._folder, about)
            if self._segments:
                self._segments[max(self._segments)].cut()
            self._make_room(0)
        except OSError as error:
            self._fail(f"nothing can be written to --cache-dir {self._dir} ({error.strerror or error})")

    # --- looking --------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._index)

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(segment.num_bytes for segment in self._segments.values())

    @property
    def writes(self) -> bool:
        """Whether this process may write, and nothing has failed lately."""
        return self._writer is not None and time.monotonic() >= self._retry_at

    def has(self, key: bytes) -> bool:
        return key in self._index

    def get(self, key: bytes) -> Record | None:
        return self._index.get(key)

    def find(self, keys: Sequence[bytes], ids: Int32Array, start: int) -> list[Record]:
        """Records `start`, `start + 1`, ... of a prefix, as far as they follow one another. `keys`, `ids`: of all of it."""
        with self._lock:
            return follow(self._index.get, keys, ids, start, self.form.run)

    def tail_lens(self, key: bytes) -> set[int]:
        """As Store.tail_lens."""
        with self._lock:
            return set(self._tail_lens.get(key, ()))

    def tier_of(self, record: Record) -> str:
        """As Store.tier_of."""
        return "disk"

    @property
    def counts(self) -> dict[str, int]:
        """Records and bytes that are there; records written and found damaged since it was opened."""
        return {"records": len(self), "bytes": self.num_bytes, "written": self.num_written, "damaged": self.num_damaged}

    # --- reading: the reader's thread -------------------------------------------------------------------------------------------

    def read(self, record: Record, out: Bytes) -> bool:
        """Fills `out` with a record's payload. False if it cannot be read or is not what was written: then it is forgotten."""
        try:
            is_whole = self._reader.read(record.segment, record.at, out)
            is_whole = is_whole and payload_crc(record.entry.key, out) == record.entry.crc
        except OSError:
            is_whole = False
        if not is_whole:
            with self._lock:
                if self._index.get(record.entry.key) is record:  # else its segment has been deleted meanwhile
                    del self._index[record.entry.key]
                    self.num_damaged += 1
        elif (now := time.time()) - record.segment.used_at > TOUCH_SECONDS and self._writer is not None:
            record.segment.touch(now)
        return is_whole

    @property
    def is_stale(self) -> bool:
        """Whether another process may write, and this one has not looked lately."""
        return self._writer is None and time.monotonic() - self._scanned_at >= RESCAN_SECONDS

    def rescan(self) -> None:
        """Looks for what the writer has added."""
        self._scanned_at = time.monotonic()
        try:
            self._scan()
        except OSError:
            self._forget(list(self._segments.values()))

    def _scan(self) -> None:
        numbers = {int(path.stem) for path in self._folder.glob("*.idx") if path.stem.isdecimal()}
        self._forget([segment for segment in self._segments.values() if segment.number not in numbers])
        for number in sorted(numbers, reverse=True):
            segment = self._segments.get(number) or Segment(self._folder, number, self.form)
            try:
                self._take(segment)
            except (OSError, ValueError) as error:
                self.num_damaged += isinstance(error, ValueError)
                self._forget([segment])
                if self._writer is not None:
                    segment.remove()

    def _take(self, segment: Segment) -> None:
        most = MAX_RECORDS - len(self._index)
        new = list(itertools.islice(segment.new_entries(), most + 1))
        if len(new) > most:
            raise ValueError(f"{segment.index_path} has more records than are kept")
        with self._lock:
            self._segments[segment.number] = segment
            for at, entry in new:
                if entry is None:
                    self.num_damaged += 1
                else:
                    self._enter(Record(entry, segment, at))

    def _forget(self, segments: Sequence[Segment]) -> None:
        gone = {segment.number for segment in segments}
        with self._lock:
            for number in gone:
                self._segments.pop(number, None)
            if gone:
                left = [record for record in self._index.values() if record.segment.number not in gone]
                self._index, self._tail_lens = {}, {}
                for record in left:
                    self._enter(record)

    def _enter(self, record: Record) -> None:
        """Under the lock."""
        entry = record.entry
        self._index[entry.key] = record
        if entry.is_state:
            self._tail_lens.setdefault(entry.parent, set()).add(entry.num_tokens)

    # --- writing: the writer's thread -------------------------------------------------------------------------------------------

    def append(self, entry: Entry, payload: Bytes) -> bool:
        """Adds a record. False if it cannot be written now."""
        if not self.writes:
            return False
        try:
            segment = self._segment_with_room()
            if segment is None:
                return False
            segment.append(entry, payload)
        except OSError as error:
            self._fail(f"nothing can be written to --cache-dir {self._dir} ({error.strerror or error})")
            return False
        with self._lock:
            self._enter(Record(entry, segment, segment.num_entries - 1))
        self.num_written += 1
        return True

    def _segment_with_room(self) -> Segment | None:
        """Where the next record goes. None if the disk has no room for it. Raises OSError."""
        size = self.form.payload_bytes + self.form.entry_bytes
        if len(self._index) >= MAX_RECORDS:
            self._drop_oldest()
        last = self._segments[max(self._segments)] if self._segments else None
        fits = last is not None and last.num_bytes + size <= self._segment_bytes
        if fits and shutil.disk_usage(self._folder).free >= self._room.least_free + size:
            return last
        if not self._make_room(self._segment_bytes):
            self._fail(f"the disk of --cache-dir {self._dir} is full: at least {self._room.least_free >> 30} GiB are left free")
            return None
        if fits and last is not None and last.number in self._segments:
            return last
        self._last_number = max(self._last_number, *self._segments, int(time.time()) - 1) + 1  # never that of a deleted one
        segment = Segment(self._folder, self._last_number, self.form)
        segment.create()
        segment.touch(time.time())
        with self._lock:
            self._segments[segment.number] = segment
        return segment

    def _make_room(self, num_bytes: int) -> bool:
        """Has so many bytes free within the limit and on the disk, if forgetting segments brings that. Raises OSError."""
        while (short := self._num_short(num_bytes)) > 0:
            if not remove_oldest(self._dir, short, self._folder) and not self._drop_oldest():
                return False
        return True

    def _num_short(self, num_bytes: int) -> int:
        over = folder_bytes(self._dir) + num_bytes - self._limit
        return max(over, self._room.least_free + num_bytes - shutil.disk_usage(self._folder).free)

    def _drop_oldest(self) -> bool:
        """Forgets and deletes the least recently used segment."""
        with self._lock:
            oldest = min(self._segments.values(), key=lambda segment: (segment.used_at, segment.number), default=None)
        if oldest is None:
            return False
        self._forget([oldest])
        oldest.remove()
        return True

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def _fail(self, what: str) -> None:
        """Nothing is written for a while. Says why, once."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if not self._was_told:
            self._was_told = True
            logger.warning("The prefix cache on disk: %s.", what)

    def settle(self, until: float) -> None:
        """All is written."""

    def close(self) -> None:
        """Lets another process write. Nothing is called after it."""
        self._reader.close()
        if self._writer is not None:
            self._writer.release()
            self._writer = None
