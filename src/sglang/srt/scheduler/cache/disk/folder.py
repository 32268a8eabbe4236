"""The folder of the cache: whose it is, who writes to it, how much it may hold.

DIR/                        0700, of this user
  2f6c.../                  the records of one fingerprint
    about.json              which model that is, for people
    lock                    held by the one process that writes
    00000001.idx, .kv       segments
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.srt.errors import ConfigError

FREE_SHARE, MOST_BYTES = 0.1, 32 << 30
"""of the disk's free bytes, without --cache-disk"""
LEAST_FREE = 5 << 30
"""bytes of the disk that are left to others"""
_locked: set[tuple[int, int]] = set()
"""files that this process has locked: the system's locks tell processes apart, not caches of one process"""


class WriterLock:
    """The right to write to a folder, until `release` or the process's end."""

    def __init__(self, fd: int, name: tuple[int, int]) -> None:
        self._fd, self._name = fd, name

    @staticmethod
    def take(folder: Path) -> WriterLock | None:
        """None while somebody else has it. Raises OSError where no lock can be made."""
        path = folder / "lock"
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if (status.st_dev, status.st_ino) in _locked:  # and closing a file of ours would end our lock
                return None
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        status = os.fstat(fd)
        _locked.add(name := (status.st_dev, status.st_ino))
        return WriterLock(fd, name)

    def release(self) -> None:
        _locked.discard(self._name)
        os.close(self._fd)


def open_private(folder: Path) -> None:
    """Makes the folder, for this user alone. Raises ConfigError if it is another's or others may look into it, OSError where the
    file system does not play along."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise ConfigError(f"--cache-dir {folder} belongs to another user: name a folder of your own, prompts are kept in it")
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"--cache-dir {folder} is open to other users (mode {mode:04o}): prompts are kept in it; chmod 700 {folder}"
        )


def size_limit(folder: Path, asked: int | None) -> int:
    """Bytes that the folder may hold. Raises OSError."""
    if asked is not None:
        return asked
    return min(int((shutil.disk_usage(folder).free + folder_bytes(folder)) * FREE_SHARE), MOST_BYTES)


def folder_bytes(folder: Path) -> int:
    """What all records below a cache's folder take."""
    return sum(file.num_bytes for file in segment_files(folder))


@dataclass(frozen=True)
class SegmentFiles:
    """A segment as the file system knows it."""

    index: Path
    num_bytes: int
    used_at: float

    def remove(self) -> None:
        for path in (self.index, self.index.with_suffix(".kv")):
            with contextlib.suppress(OSError):
                path.unlink()


def segment_files(folder: Path) -> list[SegmentFiles]:
    """All segments below a cache's folder, least recently used first."""
    found = []
    for index in folder.glob("*/*.idx"):
        with contextlib.suppress(OSError):
            status = index.stat()
            found.append(SegmentFiles(index, status.st_size + index.with_suffix(".kv").stat().st_size, status.st_mtime))
    return sorted(found, key=lambda segment: segment.used_at)


def remove_oldest(folder: Path, num_bytes: int, own: Path) -> int:
    """Deletes least recently used segments of folders that nobody writes to, and not those of `own`, until so many bytes are
    free. Returns how many that were."""
    chosen, total = [], 0
    for segment in segment_files(folder):
        if segment.index.parent != own and total < num_bytes:
            chosen.append(segment)
            total += segment.num_bytes
    return remove_unlocked(chosen)


def remove_unlocked(segments: Sequence[SegmentFiles]) -> int:
    """Deletes segments, save for those whose folders somebody writes to. Returns the bytes that are free now."""
    freed = 0
    for segment in segments:
        with contextlib.suppress(OSError):
            lock = WriterLock.take(segment.index.parent)
            if lock is not None:
                segment.remove()
                freed += segment.num_bytes
                lock.release()
    return freed


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Says which model a folder's records are of. Raises OSError."""
    path = folder / "about.json"
    with open(os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(about, file, indent=1)
    path.with_suffix(".new").replace(path)


def read_about(folder: Path) -> dict[str, Any]:
    """What `write_about` wrote; empty if that is not readable."""
    try:
        about = json.loads((folder / "about.json").read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
