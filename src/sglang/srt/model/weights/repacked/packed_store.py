"""Opens files of packed weights, and writes them after a start that had to pack.

A file is checked whole before anything of it is used, on all cores, at every start: damage of any age is found. It is written by a
side thread at low priority under another name, and gets its own when it is whole. Of several processes that start at once, one
writes. What cannot be kept is said in one warning and costs nothing but the next start.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sglang_anywhere_kernels import _cpu

from sglang.srt.checkpoint.cache_folder import (
    LEAST_FREE,
    READ,
    folder_bytes,
    open_private,
    packed_files,
    read_packed_about,
    remove_oldest,
    remove_unused,
    size_limit,
)
from sglang.srt.config import WeightsCacheOptions
from sglang.srt.errors import ConfigError
from sglang.srt.model.kernels.packing import Packing
from sglang.srt.model.weights.repacked.packed_file import DamagedFile, Index, checksum, read_index, write_file
from sglang.srt.model.weights.repacked.session import Repacked, StoredFile

logger = logging.getLogger("sglang")

EXIT_SECONDS = 10.0
"""for which the end of a process waits until a file is whole; then it is given up"""
NICE = 5
HELD = "whoever can write there decides what models compute"


@dataclass(frozen=True)
class Place:
    """The file of one key. `about`: "place" and "weights" say where the model's files are and which they are, the rest is for
    people."""

    folder: Path
    key: str
    about: dict[str, str]

    @property
    def path(self) -> Path:
        return self.folder / "weights" / f"{self.key}.packed"


class PackedStore:
    """The files below `options.folder`, for one start of one model."""

    def __init__(self, options: WeightsCacheOptions, place: Place, packing: Packing, threads: int) -> None:
        self._options = options
        self._place = place
        self._packing = packing
        self._threads = threads
        self._why = ""

    def open(self) -> Repacked:
        """From here to `keep`, weights are taken from what the last start left, and what is packed is noted."""
        packed = self._opened()
        self._packing.kept = packed
        self._packed = packed
        return packed

    def _opened(self) -> Repacked:
        """What the last start left, or nothing."""
        stored: StoredFile | None = None
        try:
            self._place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prefixes may come to lie there
            open_private(self._place.path.parent, "--weights-cache", HELD)
            stored = self._read()
        except DamagedFile as error:
            logger.warning("Weights are packed anew: %s: %s.", self._place.path, error)
            with contextlib.suppress(OSError):
                self._place.path.unlink()
        except (OSError, ConfigError) as error:
            self._why = str(getattr(error, "strerror", None) or error)
        return Repacked(stored)

    def _read(self) -> StoredFile | None:
        """Raises DamagedFile or OSError."""
        try:
            fd = os.open(self._place.path, READ)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise DamagedFile("it is not a file of this user")
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as long as it is mapped; another lock has who deletes it
            index = read_index(fd)
            if index.key != self._place.key:
                raise DamagedFile("it is of another model")
            mapped = _cpu.MappedFile(fd, status.st_size, 0 if self._options.is_mapped else self._threads)
            self._check(index, mapped)
            with contextlib.suppress(OSError):
                os.utime(self._place.path)
            return StoredFile(index, mapped)
        except BlockingIOError:
            return None
        finally:
            os.close(fd)

    def _check(self, index: Index, mapped: _cpu.MappedFile) -> None:
        """Reads every byte."""
        with ThreadPoolExecutor(self._threads, "sglang-check") as threads:
            found = threads.map(lambda piece: checksum(mapped.view(piece.start, piece.num_bytes)), index.pieces)
            if any(sum_ != piece.checksum for sum_, piece in zip(found, index.pieces, strict=True)):
                raise DamagedFile("it is not what was written")

    def discard(self, error: Exception) -> bool:
        """Loading has failed. Deletes the file that it used; False if it used none, so that the weights themselves are to blame."""
        if not self._packed.was_stored:
            return False
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        logger.warning("Weights are packed anew: with %s loading failed: %s.", self._place.path, said)
        with contextlib.suppress(OSError):
            self._place.path.unlink()
        return not self._place.path.exists()

    def keep(self) -> threading.Thread | None:
        """All is packed. Writes it, if anything was packed now, on a side thread, which is returned."""
        packed, self._packing.kept = self._packed, None
        num_bytes = sum(weight.num_bytes for _, weight in packed.packed)
        if not packed.num_packed or num_bytes < self._options.least_bytes:
            return None
        if self._why:
            self._warn(self._why)
            return None
        if packed.was_stored:  # and did not suit
            with contextlib.suppress(OSError):
                self._place.path.unlink()
        stop = threading.Event()
        thread = threading.Thread(target=self._keep, args=(packed, num_bytes, stop), name="sglang-weights", daemon=True)
        thread.start()
        atexit.register(_finish, thread, stop)
        return thread

    def _keep(self, packed: Repacked, num_bytes: int, stop: threading.Event) -> None:
        with contextlib.suppress(OSError, AttributeError):  # where threads have priorities of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            self._write(packed, num_bytes, stop)
        except OSError as error:
            self._warn(f"{error.strerror or error}")

    def _write(self, packed: Repacked, num_bytes: int, stop: threading.Event) -> None:
        """Raises OSError."""
        self._remove_stale()
        if not self._make_room(num_bytes):
            return
        new = self._place.path.with_suffix(".new")
        with _locked(new) as fd:
            if fd is None:
                return
            is_whole = False
            try:
                if self._place.path.exists():  # another process was done before this one created its own
                    return
                index = Index(self._place.key, packed.tensors, ())
                for _ in write_file(fd, self._place.about, index, packed.packed):
                    if stop.is_set():
                        return
                new.rename(self._place.path)
                is_whole = True
            finally:
                if not is_whole:
                    new.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Files of the same model as it was before somebody changed it."""
        remove_unused([kept for kept in packed_files(self._place.folder) if self._is_stale(read_packed_about(kept))])

    def _is_stale(self, about: Mapping[str, str]) -> bool:
        mine = self._place.about
        return about.get("place") == mine["place"] and about.get("weights") != mine["weights"]

    def _make_room(self, num_bytes: int) -> bool:
        """Raises OSError."""
        folder = self._place.folder
        limit = size_limit(folder, self._options.max_bytes)
        over = folder_bytes(folder) + num_bytes - limit
        short = max(over, LEAST_FREE + num_bytes - shutil.disk_usage(folder).free)
        if num_bytes > limit or (short > 0 and remove_oldest(folder, short) < short):
            gib = num_bytes / (1 << 30)
            self._warn(f"{gib:.2f} GiB are no room in {folder}; --cache-disk sets its limit, 5 GiB of the disk stay free")
            return False
        return True

    def _warn(self, why: str) -> None:
        logger.warning("Packed weights are not kept for the next start: %s. --weights-cache off does without.", why)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """The file, empty and open, if no other process writes it; else None. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not _is_still(fd, path):
            yield None  # another process has just finished it
            return
        os.ftruncate(fd, 0)
        yield fd
    finally:
        os.close(fd)


def _is_still(fd: int, path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(fd))


def _finish(thread: threading.Thread, stop: threading.Event) -> None:
    thread.join(EXIT_SECONDS)
    stop.set()
    thread.join(1.0)
