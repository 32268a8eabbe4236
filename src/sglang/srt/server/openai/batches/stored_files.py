"""The contents of files, and how much of the disk they may take.

    files/ID        a file that is there; its name is ours, whatever the client called it
    uploads/...     on its way; becomes a file when all of it has come
    work/BATCH      the answers of a batch that runs

Nobody fills the disk: all files together have a limit, and among several keys one may hold no more than what is left to the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import IO

from sglang.srt.config import BatchOptions
from sglang.srt.errors import ConfigError, OverloadError, RequestError
from sglang.srt.server.openai.batches.batch_records import FileRecord
from sglang.srt.server.openai.batches.batch_store import BatchStore

MAX_FILES = 10_000
"""of an owner"""
FORGOTTEN_SECONDS = 86_400.0
"""after which what a server left behind that was killed is removed"""
MAX_FILENAME = 255
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class NoRoom(OverloadError):
    """The disk, or the part of it that files may have, is full."""


def unwritable(reason: str | None) -> NoRoom:
    """What is told of a disk; paths of ours are not."""
    return NoRoom(f"the folder of files and batches cannot be used now: {reason}")


def may_pass(error: OSError) -> bool:
    """Somebody may make room: what failed can be tried again."""
    return error.errno in _PASSING


class StoredFiles:
    """Owner of the folder. `on_their_way`: bytes of each owner that are written and in no record yet."""

    def __init__(self, options: BatchOptions) -> None:
        """Raises ConfigError for a folder that cannot be used."""
        self.folder = Path(options.folder)
        self.options = options
        self.on_their_way: Counter[str] = Counter()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("files", "uploads", "work"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.folder}, the folder for files and batches, cannot be used: {error.strerror}") from error
        if os.stat(self.folder).st_mode & 0o077:
            raise ConfigError(f"{self.folder} can be read by other users: chmod 700 {self.folder}")

    def path(self, name: str) -> Path:
        return self.folder / "files" / name

    def work(self, batch: str) -> Path:
        return self.folder / "work" / batch

    def left(self, store: BatchStore, owner: str) -> int:
        """Bytes that an owner may still write."""
        total, own, _ = store.sizes(owner)
        left = self.options.max_bytes - total - sum(self.on_their_way.values())
        if owner:
            left = min(left, (self.options.max_bytes + own - total) // 2 - own - self.on_their_way[owner])
        return max(left, 0)

    def room(self, store: BatchStore, owner: str) -> int:
        """The same for new files. Raises NoRoom for none, and RequestError for an owner of too many."""
        if store.sizes(owner)[2] >= MAX_FILES:
            raise RequestError(f"{MAX_FILES} files are stored already: delete some")
        left = self.left(store, owner)
        if not left:
            raise NoRoom(
                f"the stored files may have {self.options.max_bytes} bytes, which are taken: delete some (--batch-disk)"
            )
        return left

    def remove(self, name: str) -> None:
        """Of a file that is in no record any more; what cannot be removed now, `clean` removes later."""
        with contextlib.suppress(OSError):
            self.path(name).unlink()

    def clean(self, store: BatchStore) -> None:
        """Removes files whose time is over, and what servers that were killed have left behind."""
        now = time.time()
        for file in store.expired_files(now):
            store.remove_file(file.id, file.owner)
            self.remove(file.id)
        known = store.file_names()
        running = {batch.id for batch in store.unfinished()}
        for path in (*self.folder.glob("files/*"), *self.folder.glob("uploads/*"), *self.folder.glob("work/*")):
            with contextlib.suppress(OSError):
                if path.name not in known | running and path.stat().st_mtime < now - FORGOTTEN_SECONDS:
                    path.unlink()


class Upload:
    """A file that comes in pieces; `write`, `finish` and `drop` touch the disk."""

    def __init__(self, files: StoredFiles, owner: str, room: int) -> None:
        """Raises NoRoom."""
        self._files, self._owner, self._room = files, owner, room
        self._path = files.folder / "uploads" / secrets.token_hex(12)
        try:
            self._file: IO[bytes] = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except OSError as error:
            raise unwritable(error.strerror) from error
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises NoRoom, and RequestError for a file that becomes too long."""
        most = self._files.options.max_file_bytes
        if self.size + len(data) > most:
            raise RequestError(f"the file is longer than {most} bytes (--max-batch-file-bytes)", "file")
        if self.size + len(data) > self._room:
            raise NoRoom("the stored files would take more than they may: delete some (--batch-disk)")
        try:
            self._file.write(data)
        except OSError as error:
            raise unwritable(error.strerror) from error
        self.size += len(data)
        self._files.on_their_way[self._owner] += len(data)

    def finish(self, file: FileRecord, store: BatchStore) -> None:
        """All has come: from now on it is a file. Raises NoRoom."""
        try:
            self._file.close()
            self._path.rename(self._files.path(file.id))
        except OSError as error:
            raise unwritable(error.strerror) from error
        try:
            store.add_files([file])
        except BaseException:
            self._files.remove(file.id)
            raise

    def drop(self) -> None:
        """It is on its way no more; what is not finished is removed."""
        self._files.on_their_way[self._owner] -= self.size
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def new_name(kind: str) -> str:
    return f"{kind}{secrets.token_hex(12)}"


def shown_filename(name: str | None) -> str:
    """What a client calls its file: the last part of a path, without what cannot be shown. It names nothing on our disk."""
    text = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in text if c.isprintable())[:MAX_FILENAME] or "file"
