"""What is known of files and batches, in SQLite: it survives the server, and the servers of one machine share it.

Everything runs on the thread that opened the store (common/database.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from sglang.common.database import BadDatabase, changing, open_database
from sglang.srt.errors import ConfigError, NoSuchFileError, RequestError
from sglang.srt.server.openai.batches.batch_records import ENDED, BatchRecord, FileRecord, Status

_TABLES = """
create table if not exists files(number integer primary key, id text unique, owner text, size integer, purpose text,
    expires_at integer, body blob);
create index if not exists files_of on files(owner, number);
create table if not exists batches(number integer primary key, id text unique, owner text, status text, body blob);
create index if not exists batches_of on batches(owner, number);
create index if not exists batches_by_status on batches(status);
"""


class BatchStore:
    """Owner of the two tables."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        try:
            self._database = open_database(path, _TABLES)
        except BadDatabase as error:
            raise ConfigError(str(error)) from error

    def close(self) -> None:
        self._database.close()

    # --- files ------------------------------------------------------------------------------------------------------------------

    def sizes(self, owner: str) -> tuple[int, int, int]:
        """(bytes of all files, of this owner's, how many those are)."""
        (total,) = self._database.execute("select coalesce(sum(size), 0) from files").fetchone()
        own, count = self._database.execute(
            "select coalesce(sum(size), 0), count(*) from files where owner = ?", (owner,)
        ).fetchone()
        return total, own, count

    def add_files(self, files: Iterable[FileRecord], batch: BatchRecord | None = None) -> None:
        """Enters files, and with them the batch whose they are."""
        with changing(self._database):
            for file in files:
                row = (file.id, file.owner, file.size, file.purpose, file.expires_at, msgspec.msgpack.encode(file))
                self._database.execute(
                    "insert or replace into files(id, owner, size, purpose, expires_at, body) values (?, ?, ?, ?, ?, ?)", row
                )
            if batch is not None:
                self._put(batch)

    def file(self, name: str, owner: str) -> FileRecord:
        """Raises NoSuchFileError."""
        found = self._database.execute("select body from files where id = ? and owner = ?", (name, owner)).fetchone()
        if found is None:
            raise NoSuchFileError(f"there is no file {name[:100]!r}")
        return msgspec.msgpack.decode(found[0], type=FileRecord)

    def remove_file(self, name: str, owner: str) -> None:
        """Raises NoSuchFileError, and RequestError while a batch needs it."""
        with changing(self._database):
            self.file(name, owner)
            for batch in self._batches(owner):
                if not batch.has_ended and batch.input_file_id == name:
                    raise RequestError(f"the batch {batch.id} reads the file {name}: cancel it first")
            self._database.execute("delete from files where id = ?", (name,))

    def expired_files(self, now: float) -> list[FileRecord]:
        rows = self._database.execute("select body from files where expires_at <= ?", (now,)).fetchall()
        files = [msgspec.msgpack.decode(body, type=FileRecord) for (body,) in rows]
        needed = {batch.input_file_id for batch in self.unfinished()}
        return [file for file in files if file.id not in needed]

    def file_names(self) -> set[str]:
        return {name for (name,) in self._database.execute("select id from files")}

    def list_files(
        self, owner: str, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> tuple[list[FileRecord], bool]:
        """A page of an owner's files, and whether there are more. Raises RequestError."""
        where, values = ("and purpose = ?", [purpose]) if purpose is not None else ("", [])
        rows, more = self._page("files", owner, after, limit, newest_first, where, values)
        return [msgspec.msgpack.decode(body, type=FileRecord) for body in rows], more

    # --- batches ----------------------------------------------------------------------------------------------------------------

    def add_batch(self, batch: BatchRecord, most: int, most_ended: int) -> None:
        """Enters a new one, for a file that is there, and forgets the owner's oldest beyond `most_ended` that have ended. Raises
        NoSuchFileError, and RequestError for one above `most` of its owner's that have not ended."""
        with changing(self._database):
            self.file(batch.input_file_id, batch.owner)
            if sum(not other.has_ended for other in self._batches(batch.owner)) >= most:
                raise RequestError(f"{most} batches have not ended yet: wait for one, or cancel one")
            self._put(batch)
            ended = f"owner = ? and status in ({', '.join('?' * len(ENDED))})"
            self._database.execute(
                f"delete from batches where {ended} and number <= "
                f"(select number from batches where {ended} order by number desc limit 1 offset ?)",
                (batch.owner, *ENDED, batch.owner, *ENDED, most_ended),
            )

    def batch(self, name: str, owner: str) -> BatchRecord:
        """Raises NoSuchFileError."""
        found = self._database.execute("select body from batches where id = ? and owner = ?", (name, owner)).fetchone()
        if found is None:
            raise NoSuchFileError(f"there is no batch {name[:100]!r}")
        return msgspec.msgpack.decode(found[0], type=BatchRecord)

    def cancel(self, name: str, owner: str, now: int) -> BatchRecord:
        """Raises NoSuchFileError, and RequestError for one that has ended."""
        with changing(self._database):
            batch = self.batch(name, owner)
            if batch.has_ended or batch.status == "finalizing":
                raise RequestError(f"the batch {name} is {batch.status} and cannot be cancelled")
            if batch.status != "cancelling":
                batch.status, batch.cancelling_at = "cancelling", now
                self._put(batch)
        return batch

    def move(self, batch: BatchRecord, status: Status, unless: tuple[Status, ...] = ()) -> bool:
        """Writes a batch with its new status; False, and nothing is written, if it has one of `unless` by now."""
        with changing(self._database):
            if unless and self.batch(batch.id, batch.owner).status in unless:
                return False
            batch.status = status
            self._put(batch)
        return True

    def count(self, batch: BatchRecord) -> Status:
        """Writes how many requests have their answers. Returns the status, which others may have changed."""
        with changing(self._database):
            now = self.batch(batch.id, batch.owner)
            now.total, now.completed, now.failed = batch.total, batch.completed, batch.failed
            self._put(now)
        return now.status

    def unfinished(self) -> list[BatchRecord]:
        """Of all owners, the oldest first."""
        marks = ", ".join("?" * len(ENDED))
        rows = self._database.execute(
            f"select body from batches where status not in ({marks}) order by number", sorted(ENDED)
        ).fetchall()
        return [msgspec.msgpack.decode(body, type=BatchRecord) for (body,) in rows]

    def list_batches(self, owner: str, after: str | None, limit: int) -> tuple[list[BatchRecord], bool]:
        """A page of an owner's batches, the newest first, and whether there are more. Raises RequestError."""
        rows, more = self._page("batches", owner, after, limit, True, "", [])
        return [msgspec.msgpack.decode(body, type=BatchRecord) for body in rows], more

    def _batches(self, owner: str) -> list[BatchRecord]:
        marks = ", ".join("?" * len(ENDED))
        rows = self._database.execute(
            f"select body from batches where owner = ? and status not in ({marks})", (owner, *sorted(ENDED))
        )
        return [msgspec.msgpack.decode(body, type=BatchRecord) for (body,) in rows.fetchall()]

    def _put(self, batch: BatchRecord) -> None:
        row = (batch.id, batch.owner, batch.status, msgspec.msgpack.encode(batch))
        self._database.execute(
            "insert into batches(id, owner, status, body) values (?, ?, ?, ?) "
            "on conflict(id) do update set status = excluded.status, body = excluded.body",
            row,
        )

    def _page(
        self, table: str, owner: str, after: str | None, limit: int, newest_first: bool, where: str, values: list[str]
    ) -> tuple[list[bytes], bool]:
        sign, order = ("<", "desc") if newest_first else (">", "asc")
        if after is not None:
            found = self._database.execute(f"select number from {table} where id = ? and owner = ?", (after, owner)).fetchone()
            if found is None:
                raise RequestError(f"after: there is no {after[:100]!r}", "after")
            where, values = f"{where} and number {sign} ?", [*values, found[0]]
        rows = self._database.execute(
            f"select body from {table} where owner = ? {where} order by number {order} limit ?", (owner, *values, limit + 1)
        ).fetchall()
        return [body for (body,) in rows[:limit]], len(rows) > limit
