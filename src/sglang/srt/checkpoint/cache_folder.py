"""What is kept on disk to save work at the next start: whose it is, who writes to it, how much it may be.

DIR/                        0700, of this user (--cache-dir, --weights-cache; else the user's cache)
  2f6c.../                  prefixes: the records of one fingerprint (scheduler/cache/disk)
    about.json              which model that is, for people
    lock                    held by the one process that writes
    00000001.idx, .kv       segments
  weights/                  repacked weights (model/weights/repacked)
    81d0....packed          those of one model; locked (shared) by the processes that use them
    81d0....new             one that is being written, locked by its writer

All of it may be deleted at any time: it is made again. Downloads lie beside it and are deleted by hand only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sglang.srt.errors import ConfigError

FREE_SHARE, MOST_BYTES = 0.1, 32 << 30
"""of the disk's free bytes, without --cache-disk"""
LEAST_FREE = 5 << 30
"""bytes of the disk that are left to others"""
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""how such a file is opened: a link is not followed, and a pipe that lies there is not waited for"""
FRONT_BYTES, ABOUT_AT = 4096, 64
"""of a file of packed weights: its first page, and where in it stands, as JSON, what the file is of"""
MOST_ABOUT_BYTES = 64 << 10
_locked: set[tuple[int, int]] = set()
"""files that this process has locked: the system's locks tell processes apart, not caches of one process"""


def open_regular(path: Path, access: int = os.O_RDONLY) -> int:
    """A file of a cache. A link is not followed, and a pipe that lies there is not waited for. Raises OSError for what is no regular
    file."""
    fd = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


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
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
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


def open_private(folder: Path, flag: str = "--cache-dir", held: str = "prompts are kept in it") -> None:
    """Makes the folder, for this user alone. Raises ConfigError if it is another's or others may look into it, OSError where the
    file system does not play along. `held`: why that matters."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{flag} {folder} belongs to another user: name a folder of your own, {held}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"{flag} {folder} is open to other users (mode {mode:04o}): {held}; chmod 700 {folder}")


def size_limit(folder: Path, asked: int | None) -> int:
    """Bytes that the folder may hold. Raises OSError."""
    if asked is not None:
        return asked
    return min(int((shutil.disk_usage(folder).free + folder_bytes(folder)) * FREE_SHARE), MOST_BYTES)


def folder_bytes(folder: Path) -> int:
    """What all prefixes and weights below a cache's folder take."""
    return sum(kept.num_bytes for kept in kept_files(folder))


class Kept(Protocol):
    """Something that can be made again."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def used_at(self) -> float: ...

    def remove_unused(self) -> bool:
        """Deletes it, unless some process uses it. Whether it is gone. Raises OSError."""
        ...


@dataclass(frozen=True)
class PackedFile:
    """Repacked weights, or an image's embedding, as the file system knows them."""

    path: Path
    num_bytes: int
    used_at: float

    def remove_unused(self) -> bool:
        fd = os.open(self.path, READ)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path.unlink()
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


def read_packed_about(packed: PackedFile) -> dict[str, Any]:
    """What a file says of itself; empty if it is not whole or not readable."""
    try:
        fd = os.open(packed.path, READ)
        try:
            about = json.loads(os.pread(fd, FRONT_BYTES, 0)[ABOUT_AT:].rstrip(b"\0"))
        finally:
            os.close(fd)
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def packed_files(folder: Path) -> list[PackedFile]:
    """Repacked weights below a cache's folder, and what is left of those that were being written, least recently used first."""
    return sorted(_regular_files(folder, "weights/*.packed", "weights/*.new"), key=lambda packed: packed.used_at)


def _regular_files(folder: Path, *patterns: str) -> list[PackedFile]:
    found = []
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append(PackedFile(path, status.st_size, status.st_mtime))
    return found


@dataclass(frozen=True)
class SegmentFiles:
    """A segment as the file system knows it."""

    index: Path
    num_bytes: int
    used_at: float

    def remove_unused(self) -> bool:
        lock = WriterLock.take(self.index.parent)
        if lock is None:
            return False
        self.remove()
        lock.release()
        return True

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


def image_files(folder: Path) -> list[PackedFile]:
    """Embeddings of images below a cache's folder (kept_images.py), and what is left of those that were being written."""
    return _regular_files(folder, "images/*.rows", "images/*.new")


def kept_files(folder: Path) -> list[Kept]:
    """All that can be deleted below a cache's folder, least recently used first."""
    found: list[Kept] = [*segment_files(folder), *packed_files(folder), *image_files(folder)]
    return sorted(found, key=lambda kept: kept.used_at)


def remove_oldest(folder: Path, num_bytes: int, own: Path | None = None) -> int:
    """Deletes what was not used for longest and is not in use, until so many bytes are free; none of the segments in `own`. Returns
    how many that were."""
    freed = 0
    for kept in kept_files(folder):
        if freed >= num_bytes:
            break
        if not isinstance(kept, SegmentFiles) or kept.index.parent != own:
            freed += remove_unused([kept])
    return freed


def remove_unused(files: Sequence[Kept]) -> int:
    """Deletes files, save for those that some process uses. Returns the bytes that are free now."""
    freed = 0
    for kept in files:
        with contextlib.suppress(OSError):
            if kept.remove_unused():
                freed += kept.num_bytes
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
        with open(open_regular(folder / "about.json"), "rb") as file:
            about = json.loads(file.read(MOST_ABOUT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
