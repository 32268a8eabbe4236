"""Embeddings of images on disk (--cache-dir): an image that was encoded once need not be encoded again after a restart, whatever stands
before it in a prompt.

    CACHE/images/NAME.rows     magic | rows, width, checksum | float32 [rows, width]

NAME is a digest of the model's fingerprint and of what the image is to its encoder (MediaItem.mm_hash). All is done on one side
thread. Whatever goes wrong costs the time of encoding, and never an answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.cache_folder import (
    LEAST_FREE,
    folder_bytes,
    open_private,
    open_regular,
    remove_oldest,
    size_limit,
)

logger = logging.getLogger("sglang")

Rows = npt.NDArray[np.float32]
MAGIC = b"SGLROWS1"
_HEADER = struct.Struct("<8sIII")


class KeptImages:
    """Those of one fingerprint below `folder`. `limit`: bytes that the folder may hold; None: a share of the free disk."""

    def __init__(self, folder: Path, fingerprint: str, limit: int | None = None, least_free: int = LEAST_FREE) -> None:
        """Raises ConfigError for a folder that is not private."""
        self._folder, self._dir = folder, folder / "images"
        self._fingerprint = fingerprint.encode()
        self._asked, self._least_free = limit, least_free
        self._was_told = False
        self.num_read = self.num_written = 0
        with self._told("used"):
            open_private(folder)
            self._dir.mkdir(mode=0o700, exist_ok=True)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="sglang-images", daemon=True)
        self._thread.start()

    def read(self, digest: bytes) -> Future[Rows | None]:
        """Begins to read an embedding; None if it is not there, or not what was written."""
        found: Future[Rows | None] = Future()

        def run() -> None:
            try:
                found.set_result(self._read(self._path(digest)))
            except (OSError, ValueError, struct.error):
                found.set_result(None)

        self._jobs.put(run)
        return found

    def write(self, digest: bytes, rows: Rows) -> None:
        """Begins to write one, which is not changed any more."""

        def run() -> None:
            with self._told("written to"):
                self._write(self._path(digest), rows)

        self._jobs.put(run)

    def close(self, seconds: float) -> bool:
        """Ends after what was begun. Whether that was within the time."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # --- the side thread ----------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _path(self, digest: bytes) -> Path:
        name = hashlib.blake2b(digest, digest_size=20, key=hashlib.blake2b(self._fingerprint, digest_size=32).digest())
        return self._dir / f"{name.hexdigest()}.rows"

    def _read(self, path: Path) -> Rows | None:
        with open(open_regular(path), "rb") as file:
            magic, num_rows, width, crc = _HEADER.unpack(file.read(_HEADER.size))
            size = os.fstat(file.fileno()).st_size - _HEADER.size
            if magic != MAGIC or size != 4 * num_rows * width:
                return None
            data = file.read(size)
            if zlib.crc32(data, zlib.crc32(path.name.encode())) != crc:
                return None
            with contextlib.suppress(OSError):
                os.utime(file.fileno())
        self.num_read += 1
        rows: Rows = np.frombuffer(data, np.float32).reshape(num_rows, width).copy()
        return rows

    def _write(self, path: Path, rows: Rows) -> None:
        """Raises OSError."""
        data = np.ascontiguousarray(rows, np.float32).tobytes()
        if os.path.lexists(path) and self._read(path) is not None:
            return
        if not self._has_room(len(data)):
            return
        crc = zlib.crc32(data, zlib.crc32(path.name.encode()))
        scratch = path.with_suffix(f".{os.getpid()}.new")
        scratch.unlink(missing_ok=True)
        try:
            with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(_HEADER.pack(MAGIC, *rows.shape, crc))
                file.write(data)
            scratch.replace(path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
        self.num_written += 1

    def _has_room(self, num_bytes: int) -> bool:
        """Has so many bytes free within the limit and on the disk, if what was not used for longest makes room."""
        limit = size_limit(self._folder, self._asked)
        for _ in range(2):
            over = folder_bytes(self._folder) + num_bytes - limit
            short = max(over, self._least_free + num_bytes - shutil.disk_usage(self._folder).free)
            if short <= 0:
                return True
            remove_oldest(self._folder, short)
        return False

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Errors of the file system end here; the first is said."""
        try:
            yield
        except (OSError, ValueError, struct.error) as error:
            if not self._was_told:
                self._was_told = True
                reason = getattr(error, "strerror", None) or error
                logger.warning("Images in --cache-dir %s cannot be %s (%s): they are encoded.", self._folder, what, reason)
