"""Stored responses in SQLite (--state-dir): they survive the server, and the servers of one machine share them.

put      in memory at once, on disk before the answer is sent; at the end of a stream a moment later
fetch    looks on the disk, where another server may have stored or deleted it, before memory is read
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from pathlib import Path

from sglang.common.database import BadDatabase, StoreThread, changing, open_database
from sglang.srt.errors import ConfigError, OverloadError
from sglang.srt.server.openai.responses.store import MAX_RESPONSES, ResponseStore, StoredResponse, reference_ids

logger = logging.getLogger("sglang")

MAX_BYTES = 1 << 30
"""of all, on disk"""
MAX_CHAIN = 10_000
NUM_LOOKS, LOOK_SECONDS = 5, 0.1
_TABLES = """
create table if not exists responses(number integer primary key, owner text, id text, previous text, items blob, response blob,
    output blob, output_ids text, size integer, unique(owner, id));
create table if not exists outputs(owner text, id text, response text, primary key(owner, id)) without rowid;
"""


def unwritable(reason: str) -> OverloadError:
    return OverloadError(f"the folder of stored responses cannot be used now: {reason}")


class DiskResponses:
    """Owner of the file."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        """Raises ConfigError."""
        self._max_bytes = max_bytes
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = open_database(path, _TABLES)
        except (BadDatabase, OSError) as error:
            raise ConfigError(str(error)) from error

    def close(self) -> None:
        self._database.close()

    def put(self, owner: str, name: str, stored: StoredResponse) -> None:
        with changing(self._database):
            self._database.execute(
                "insert or replace into responses(owner, id, previous, items, response, output, output_ids, size) "
                "values (?, ?, ?, ?, ?, ?, ?, ?)",
                (owner, name, stored.previous, stored.items, stored.response, stored.output)
                + ("\n".join(stored.output_ids), stored.size),
            )
            rows = [(owner, output, name) for output in stored.output_ids]
            self._database.executemany("insert or replace into outputs values (?, ?, ?)", rows)
            self._make_room()

    def _make_room(self) -> None:
        """The oldest of who holds most make room."""
        while True:
            (total,) = self._database.execute("select coalesce(sum(size), 0) from responses").fetchone()
            if total <= self._max_bytes:
                return
            (owner,) = self._database.execute(
                "select owner from responses group by owner order by sum(size) desc limit 1"
            ).fetchone()
            (name,) = self._database.execute(
                "select id from responses where owner = ? order by number limit 1", (owner,)
            ).fetchone()
            self._remove(owner, name)

    def get(self, owner: str, name: str) -> StoredResponse | None:
        row = self._database.execute(
            "select items, response, output, previous, output_ids from responses where owner = ? and id = ?", (owner, name)
        ).fetchone()
        if row is None:
            return None
        items, response, output, previous, output_ids = row
        return StoredResponse(items, response, output, previous, tuple(output_ids.split("\n")) if output_ids else ())

    def has(self, owner: str, name: str) -> str | None:
        """None: there is none; else the one that it follows, or an empty text."""
        row = self._database.execute("select previous from responses where owner = ? and id = ?", (owner, name)).fetchone()
        return (row[0] or "") if row is not None else None

    def of_output(self, owner: str, output: str) -> str | None:
        """The response that has this item."""
        row = self._database.execute("select response from outputs where owner = ? and id = ?", (owner, output)).fetchone()
        return row[0] if row is not None else None

    def remove(self, owner: str, name: str) -> None:
        with changing(self._database):
            self._remove(owner, name)

    def _remove(self, owner: str, name: str) -> None:
        self._database.execute("delete from responses where owner = ? and id = ?", (owner, name))
        self._database.execute("delete from outputs where owner = ? and response = ?", (owner, name))


class SharedResponses(ResponseStore):
    """What is in memory is a part of what is on disk, but for the last moments."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError."""
        super().__init__()
        self._disk = StoreThread(lambda: DiskResponses(folder / "responses.sqlite3"), unwritable)
        self._last: Future[None] | None = None
        """the write that was begun last"""
        self._only_here: dict[tuple[str, str], None] = {}
        """what could not be written, the oldest first"""

    def kept(self, owner: str, name: str, stored: StoredResponse) -> None:
        loop = asyncio.get_running_loop()
        self._last = self._disk.begin(DiskResponses.put, owner, name, stored)
        self._last.add_done_callback(
            lambda written: loop.call_soon_threadsafe(self._was_written, owner, name, written.exception())
        )

    def _was_written(self, owner: str, name: str, error: BaseException | None) -> None:
        """What could not be written is in memory only, and written once another one could be."""
        if error is not None:
            if not self._only_here:
                logger.warning("responses are kept in memory only, since --state-dir cannot be written: %s", error)
            self._only_here[owner, name] = None
            while len(self._only_here) > MAX_RESPONSES:  # memory has no more either
                self._only_here.pop(next(iter(self._only_here)))
            return
        was_full = bool(self._only_here)
        self._only_here.pop((owner, name), None)
        while self._only_here:
            owner, name = next(iter(self._only_here))
            if (stored := self.peek(name, owner)) is not None:
                self.kept(owner, name, stored)
                return
            del self._only_here[owner, name]
        if was_full:
            logger.warning("--state-dir can be written again")

    async def settled(self) -> None:
        if self._last is not None and not self._last.done():
            await asyncio.gather(asyncio.wrap_future(self._last), return_exceptions=True)

    async def forget(self, name: str, owner: str) -> None:
        """Raises OverloadError, and keeps it, where the disk does."""
        await self._disk.do(DiskResponses.remove, owner, name)
        self._only_here.pop((owner, name), None)
        if self.peek(name, owner) is not None:
            self.drop(name, owner)

    async def fetch(self, name: str | None, owner: str) -> None:
        """Brings a response, and all that it follows, into memory, or takes out of memory what has been deleted."""
        for _ in range(MAX_CHAIN):
            if not name:
                return
            name = await self._fetch_one(name, owner)

    async def _fetch_one(self, name: str, owner: str) -> str | None:
        previous, here = await self._disk.do(DiskResponses.has, owner, name), self.peek(name, owner)
        for _ in range(NUM_LOOKS if here is None else 0):
            if previous is not None:
                break
            await asyncio.sleep(LOOK_SECONDS)  # another server may be about to write it
            previous = await self._disk.do(DiskResponses.has, owner, name)
        if previous is None:
            if here is not None and (owner, name) in self._only_here:
                return here.previous
            if here is not None:
                self.drop(name, owner)
            return None
        if here is None:
            found = await self._disk.do(DiskResponses.get, owner, name)
            if found is not None and self.peek(name, owner) is None:
                self.enter(owner, name, found)
        return previous

    async def fetch_referred(self, items: object, owner: str) -> None:
        for output in reference_ids(items):
            name = await self._disk.do(DiskResponses.of_output, owner, output)
            if name is not None:
                await self._fetch_one(name, owner)

    def close(self) -> None:
        self._disk.close(DiskResponses.close)
