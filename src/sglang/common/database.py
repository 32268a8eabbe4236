"""SQLite on a thread of its own: a disk may take its time, and nobody else is to wait for it.

A commit is in the write-ahead log at once, so that a process that is killed loses nothing; only a machine that loses its power may forget
the last moments. Several processes may share a file.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, Generic, ParamSpec, TypeVar

BUSY_SECONDS = 30.0
"""for which another process may hold the database"""
VERSION = 1

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


class BadDatabase(Exception):
    """A file that cannot be used. The message says why."""


class StoreThread(Generic[S]):
    """Owner of a store and of the one thread that it lives on."""

    def __init__(self, make: Callable[[], S], refusal: Callable[[str], Exception]) -> None:
        """`refusal`: what is raised where the disk does not do its part, made of its reason. Raises what `make` does."""
        self._refusal = refusal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.store = self._thread.submit(make).result()

    async def do(self, work: Callable[Concatenate[S, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(store, *args)`. A disk that is full, or read only, or gone, is a refusal: nothing of the work is done."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self.store, *args, **kwargs))
        except sqlite3.OperationalError as error:
            raise self._refusal(str(error)) from error

    def begin(self, work: Callable[Concatenate[S, P], T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The same, and nobody waits for it: its future has SQLite's own error."""
        return self._thread.submit(lambda: work(self.store, *args, **kwargs))

    def close(self, work: Callable[[S], object]) -> None:
        """Ends, with `work(store)` last."""
        self._thread.submit(work, self.store).result()
        self._thread.shutdown()


def open_database(path: Path, tables: str) -> sqlite3.Connection:
    """Only its owner may read it. Raises BadDatabase."""
    try:
        _keep_private(path)
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        database.execute("pragma journal_mode=wal")
        database.execute("pragma synchronous=normal")
        (version,) = database.execute("pragma user_version").fetchone()
        if version not in (0, VERSION):
            raise BadDatabase(f"{path} was written by another version of this program: name another folder")
        database.executescript(tables)
        database.execute(f"pragma user_version={VERSION}")
    except (sqlite3.Error, OSError) as error:
        raise BadDatabase(f"{path} cannot be used: {error}") from error
    return database


def _keep_private(path: Path) -> None:
    """Makes the file, or checks the one that is there: SQLite would read a pipe for ever, and believe what another user wrote."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.open(path, flags, 0o600)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise BadDatabase(f"{path} cannot be used: it is no ordinary file")
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            raise BadDatabase(f"{path} cannot be used: it belongs to another user")
        if os.stat(path.parent).st_mode & stat.S_IWOTH and os.name == "posix":
            raise BadDatabase(f"{path} cannot be used: all users may write to its folder: chmod o-w {path.parent}")
        if stat.S_IMODE(found.st_mode) & 0o077 and hasattr(os, "fchmod"):
            os.fchmod(file, 0o600)
    finally:
        os.close(file)


@contextmanager
def changing(database: sqlite3.Connection) -> Iterator[None]:
    """One transaction, which no other process' comes between."""
    database.execute("begin immediate")
    try:
        yield
        database.execute("commit")
    except BaseException:
        if database.in_transaction:  # SQLite may have ended it itself: where the disk is full
            database.execute("rollback")
        raise
