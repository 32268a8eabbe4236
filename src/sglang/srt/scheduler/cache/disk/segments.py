"""A segment: two append-only files, entries of one size and payloads of one size.

    1780000007.idx   header | entry 0 | entry 1 | ...
    1780000007.kv    payload 0 | payload 1 | ...

The payload is written first, then its entry. Wherever a crash cuts that, what is left behind whole records is cut off or
overwritten, and an entry whose payload never reached the disk fails its check when it is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.cache_folder import open_regular
from sglang.srt.scheduler.cache.disk.records import HEADER_BYTES, Entry, RecordFormat


class Segment:
    """One pair of files. Errors of the file system are the caller's (OSError)."""

    def __init__(self, folder: Path, number: int, form: RecordFormat) -> None:
        self.number = number
        self.index_path = folder / f"{number}.idx"
        self.payload_path = folder / f"{number}.kv"
        self.form = form
        self.num_entries = 0
        """records, damaged ones counted in"""
        self.used_at = 0.0

    @property
    def num_bytes(self) -> int:
        return HEADER_BYTES + self.num_entries * (self.form.entry_bytes + self.form.payload_bytes)

    def create(self) -> None:
        """Empty files, for their owner alone."""
        for path, data in ((self.payload_path, b""), (self.index_path, self.form.header())):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "wb", buffering=0) as file:
                file.write(data)

    def new_entries(self) -> Iterator[tuple[int, Entry | None]]:
        """Entries that were not there at the last look, with their places; None for a damaged one. Raises ValueError for
        files that are no segment of this format."""
        form = self.form
        with open(open_regular(self.index_path), "rb") as file:
            self.used_at = max(self.used_at, os.fstat(file.fileno()).st_mtime)
            if file.read(HEADER_BYTES) != form.header():
                raise ValueError(f"{self.index_path} is damaged, or of another format")
            file.seek(HEADER_BYTES + self.num_entries * form.entry_bytes)
            room = self.payload_path.lstat().st_size // form.payload_bytes
            while self.num_entries < room and len(data := file.read(form.entry_bytes)) == form.entry_bytes:
                self.num_entries += 1
                yield self.num_entries - 1, form.decode(data)

    def cut(self) -> None:
        """Removes what follows the last whole record."""
        for path, size in (
            (self.index_path, HEADER_BYTES + self.num_entries * self.form.entry_bytes),
            (self.payload_path, self.num_entries * self.form.payload_bytes),
        ):
            with open(open_regular(path, os.O_RDWR), "r+b", buffering=0) as file:
                file.truncate(size)

    def append(self, entry: Entry, payload: npt.NDArray[np.uint8]) -> None:
        """Writes the record `num_entries`. Raises OSError, and then nothing has been added."""
        form, at = self.form, self.num_entries
        for path, data, start in (
            (self.payload_path, payload.data, at * form.payload_bytes),
            (self.index_path, memoryview(form.encode(entry)), HEADER_BYTES + at * form.entry_bytes),
        ):
            with open(open_regular(path, os.O_RDWR), "r+b", buffering=0) as file:
                done = 0
                while done < len(data):
                    done += os.pwrite(file.fileno(), data[done:], start + done)
        self.num_entries += 1

    def touch(self, now: float) -> None:
        """It was used: the least recently used one goes first, also after a restart."""
        self.used_at = now
        with contextlib.suppress(OSError):
            os.utime(self.index_path, (now, now))

    def remove(self) -> None:
        for path in (self.index_path, self.payload_path):
            with contextlib.suppress(OSError):
                path.unlink()


class PayloadReader:
    """Reads payloads. Keeps one file open: the records of a prefix lie together. For one thread."""

    def __init__(self) -> None:
        self._segment: Segment | None = None
        self._fd = -1

    def read(self, segment: Segment, at: int, out: npt.NDArray[np.uint8]) -> bool:
        """Fills `out` with payload `at`. False if the file ends before that. Raises OSError."""
        if self._segment is not segment:
            self.close()
            self._fd = open_regular(segment.payload_path)
            self._segment = segment
        view, done = out.data, 0
        while done < len(out):
            count = os.preadv(self._fd, [view[done:]], at * len(out) + done)
            if count == 0:
                return False
            done += count
        return True

    def close(self) -> None:
        if self._segment is not None:
            os.close(self._fd)
            self._segment = None
