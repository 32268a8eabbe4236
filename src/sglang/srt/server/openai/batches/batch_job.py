"""One batch, from its input to its files of answers.

    validating --> in_progress --> finalizing --> completed
        |              |  `--time is over--> expired
      failed           `--cancelling--> cancelled

Answers are written to work/BATCH as they come, a line each behind the number of its request and a mark: a server that was killed goes on
with what is missing, and a line that was cut short is asked for again. In the end they are sorted, as the requests were, into a file of
answers and one of errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Concatenate, ParamSpec, TypeVar

import msgspec

from sglang.common.batch_run import Patient, run_window, wait_for_event
from sglang.common.database import StoreThread
from sglang.srt.errors import OverloadError
from sglang.srt.server.limits.shares import Shares
from sglang.srt.server.openai.batches.batch_input import Row, body_of, custom_id_of, line_at, read_input
from sglang.srt.server.openai.batches.batch_records import BatchError, BatchRecord, FileRecord, Status
from sglang.srt.server.openai.batches.batch_store import BatchStore
from sglang.srt.server.openai.batches.row_calls import RowCalls
from sglang.srt.server.openai.batches.stored_files import StoredFiles, may_pass, new_name

logger = logging.getLogger("sglang")

LOOK_SECONDS = 1.0
"""between two looks at whether it was cancelled by another process, and at the time"""
FULL_SECONDS = 5.0
"""after which a full disk is tried again"""
PLACE_BYTES = 1 << 20
"""of a request: a longer one takes several places, so that few of them are in memory at once"""
GOOD, BAD = b"+", b"-"

_encode = msgspec.json.encode

P = ParamSpec("P")
T = TypeVar("T")


class Job:
    """Runs one batch. All batches share `places`, of requests, and `turns`: one at a time reads its input or writes its files."""

    def __init__(
        self,
        batch: BatchRecord,
        files: StoredFiles,
        store: StoreThread[BatchStore],
        calls: RowCalls,
        places: Shares,
        turns: Shares,
    ) -> None:
        self.batch = batch
        self._files, self._store, self._calls, self._places, self._turns = files, store, calls, places, turns
        self._input = files.path(batch.input_file_id)
        self._rows: list[Row] = []
        self._answers = Answers(files.work(batch.id))
        self._wanted = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._writing = asyncio.Lock()

    def wake(self) -> None:
        """It may have been cancelled."""
        self._wanted.set()

    async def run(self) -> None:
        """Until it has ended. What it cannot do is told in the batch."""
        batch = self.batch
        try:
            if not await self._read_input():
                return
            await self._open_answers()
            self._files.on_their_way[batch.owner] += self._answers.size
            now = self.batch.status  # it may have been cancelled meanwhile
            status = await self._answer() if now == "in_progress" else now
            await self._end(status)
        except (OSError, msgspec.MsgspecError) as error:
            logger.exception("batch %s", batch.id)
            reason = error.strerror if isinstance(error, OSError) else error  # without a path of ours
            await self._fail([BatchError("server_error", f"the batch could not be run: {reason}"[:500])])
        finally:
            self._files.on_their_way[batch.owner] -= self._answers.size
            self._answers.close()

    async def _read_input(self) -> bool:
        """False if the batch has ended with that."""
        batch, options = self.batch, self._files.options
        async with self._turns.place(batch.owner):
            self._rows, errors = await asyncio.to_thread(
                read_input, self._input, batch.endpoint, options.max_requests, options.max_line_bytes
            )
        if errors:
            await self._fail(errors)
            return False
        if batch.status == "validating":
            batch.total, batch.in_progress_at = len(self._rows), int(time.time())
            if not await self._move("in_progress", ("cancelling",)):
                await self._refresh()
        return True

    async def _open_answers(self) -> None:
        """Raises OSError where waiting does not help."""
        while True:
            try:
                return await asyncio.to_thread(self._answers.open)
            except OSError as error:
                await self._wait_for_disk(error)

    async def _wait_for_disk(self, error: OSError | OverloadError) -> None:
        """Raises `error` if waiting does not help."""
        if isinstance(error, OSError) and not may_pass(error):
            raise error
        logger.warning("batch %s waits: %s", self.batch.id, error)
        await asyncio.sleep(FULL_SECONDS)

    async def _do(self, work: Callable[Concatenate[BatchStore, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In the store, as soon as its disk lets it."""
        while True:
            try:
                return await self._store.do(work, *args, **kwargs)
            except OverloadError as error:
                await self._wait_for_disk(error)

    async def _fail(self, errors: list[BatchError]) -> None:
        self.batch.errors, self.batch.failed_at = errors, int(time.time())
        await self._move("failed")

    async def _move(self, status: Status, unless: tuple[Status, ...] = ()) -> bool:
        return await self._do(BatchStore.move, self.batch, status, unless)

    async def _refresh(self) -> None:
        self.batch = await self._do(BatchStore.batch, self.batch.id, self.batch.owner)

    # --- answers ----------------------------------------------------------------------------------------------------------------

    async def _answer(self) -> Status:
        """Answers what has no answer yet. Returns finalizing, or why it ends before: cancelling or expired."""
        done = self._answers.lines
        left = [row for row in self._rows if row.line not in done]
        window = max(min(self._files.options.window, len(left)), 1)
        work = asyncio.ensure_future(run_window(left, self._ask, self._take, window))
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return "finalizing"
            return watch.result()
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _watch(self) -> Status:
        """Tells how far it is. Returns when it is to end."""
        while True:
            self._count()
            if await self._do(BatchStore.count, self.batch) == "cancelling":
                return "cancelling"
            if time.time() >= self.batch.expires_at:
                return "expired"
            await self._look_for_room()
            self._wanted.clear()
            await wait_for_event(self._wanted, LOOK_SECONDS)

    async def _look_for_room(self) -> None:
        if await self._left():
            self._has_room.set()
            return
        if self._has_room.is_set():
            logger.warning("batch %s waits: the stored files have all the room of --batch-disk", self.batch.id)
        self._has_room.clear()

    async def _left(self) -> int:
        return await self._do(lambda store: self._files.left(store, self.batch.owner))

    def _count(self) -> None:
        lines = self._answers.lines
        self.batch.completed = sum(lines.values())
        self.batch.failed = len(lines) - self.batch.completed

    async def _ask(self, row: Row) -> tuple[Row, str, int, bytes]:
        """The answer to one request."""
        await self._has_room.wait()
        async with self._places.place(self.batch.owner, 1 + row.size // PLACE_BYTES):
            name, body = await asyncio.to_thread(self._request, row)
            patient = Patient(
                lambda: self._calls.send(self.batch.owner, self.batch.endpoint, body), lambda b: b.decode(errors="replace")
            )
            status, answer = await patient.answer()
            return row, name, status, answer

    def _request(self, row: Row) -> tuple[str, bytes]:
        """Its name and its body."""
        with self._input.open("rb") as file:
            line = line_at(file, row)
        name = custom_id_of(line)
        return name, body_of(line, self.batch.endpoint, name)

    async def _take(self, found: tuple[Row, str, int, bytes]) -> None:
        row, custom_id, status, answer = found
        name = self._name_of(row)
        response = {"status_code": status, "request_id": name, "body": msgspec.Raw(answer.replace(b"\n", b" "))}
        said = _encode({"id": name, "custom_id": custom_id, "response": response, "error": None})
        async with self._writing:
            while True:
                try:
                    size = await asyncio.to_thread(self._answers.add, row.line, status == 200, said)
                    break
                except OSError as error:
                    await self._wait_for_disk(error)
        self._files.on_their_way[self.batch.owner] += size

    def _name_of(self, row: Row) -> str:
        digest = hashlib.blake2b(f"{self.batch.id}/{row.line}".encode(), digest_size=12)
        return f"batch_req_{digest.hexdigest()}"

    # --- the end ----------------------------------------------------------------------------------------------------------------

    async def _end(self, status: Status) -> None:
        self._count()
        if status == "finalizing" and self.batch.status != "finalizing":
            self.batch.finalizing_at = int(time.time())
            if not await self._move("finalizing", ("cancelling",)):
                status = "cancelling"
        if status == "cancelling":
            completed, failed = self.batch.completed, self.batch.failed
            await self._refresh()
            self.batch.completed, self.batch.failed = completed, failed
        while not await self._has_ended(status):
            pass
        await asyncio.to_thread(self._answers.remove)
        batch = self.batch
        logger.info("batch %s: %s, %d answers, %d errors", batch.id, batch.status, batch.completed, batch.failed)

    async def _has_ended(self, status: Status) -> bool:
        """False where that has to be tried again. One batch at a time, since the room is counted with what is recorded."""
        last: Status = "completed" if status == "finalizing" else "cancelled" if status == "cancelling" else "expired"
        files: list[FileRecord] = []
        async with self._turns.place(self.batch.owner):
            try:
                await asyncio.to_thread(self._assemble, status, await self._left(), files)
                setattr(self.batch, f"{last}_at", int(time.time()))
                self.batch.status = last
                await self._store.do(BatchStore.add_files, files, self.batch)
                return True
            except (OSError, OverloadError) as error:
                failure = error
                for file in files:
                    await asyncio.to_thread(self._files.remove, file.id)
        await self._wait_for_disk(failure)
        return False

    def _assemble(self, status: Status, left: int, found: list[FileRecord]) -> None:
        """Writes the two files of answers, and enters each into `found`. `left`: bytes for what is no answer, and has not been counted
        yet."""
        batch = self.batch
        batch.output_file_id = batch.error_file_id = None
        if status != "finalizing" and not self._fits(status, self._answers.size + left):
            status = "finalizing"
            what = "requests without an answer are not listed: the stored files have all the room that they may (--batch-disk)"
            batch.errors = [BatchError("no_room", what)]
        for is_good, field in ((True, "output"), (False, "error")):
            pieces = self._lines(is_good, status)
            first = next(pieces, None)
            if first is None:
                continue
            file = self._write_file(f"{batch.id}_{field}.jsonl", first, pieces)
            setattr(batch, f"{field}_file_id", file.id)
            found.append(file)

    def _lines(self, is_good: bool, status: Status) -> Iterator[bytes]:
        """Those of one of the two files, in the order of the requests."""
        code = {"cancelling": "batch_cancelled", "expired": "batch_expired"}.get(status)
        what = {"cancelling": "the batch was cancelled", "expired": "the batch's time was over"}.get(status, "")
        with self._input.open("rb") as file:
            for row in sorted(self._rows):
                if row.line in self._answers.lines:
                    if self._answers.lines[row.line] is is_good:
                        yield self._answers.read(row.line)
                elif code is not None and not is_good:
                    error = {"code": code, "message": f"{what} before this request was answered"}
                    name = custom_id_of(line_at(file, row))
                    yield _encode({"id": self._name_of(row), "custom_id": name, "response": None, "error": error}) + b"\n"

    def _fits(self, status: Status, most: int) -> bool:
        """Whether both files are no larger together."""
        for is_good in (True, False):
            for line in self._lines(is_good, status):
                most -= len(line)
                if most < 0:
                    return False
        return True

    def _write_file(self, filename: str, first: bytes, others: Iterator[bytes]) -> FileRecord:
        batch, now, name = self.batch, int(time.time()), new_name("file-")
        path = self._files.folder / "uploads" / new_name("")
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(first)
                out.writelines(others)
                size = out.tell()
            path.rename(self._files.path(name))
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        expires_at = now + batch.output_seconds if batch.output_seconds is not None else None
        return FileRecord(
            id=name,
            owner=batch.owner,
            filename=filename,
            size=size,
            purpose="batch_output",
            created_at=now,
            expires_at=expires_at,
        )


class Answers:
    """Owner of work/BATCH: LINE MARK ROW, in the order in which they came. `lines`: the number of each request that has its answer, and
    whether that is a good one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}
        self.lines: dict[int, bool] = {}
        self.size = 0

    def open(self) -> None:
        """Reads what is there. What was cut short in the middle of a line is taken away."""
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        with self._path.open("rb") as file:
            for line in file:
                number, mark, row = (line.split(b" ", 2) + [b"", b""])[:3]
                if not line.endswith(b"\n") or not number.isdigit() or mark not in (GOOD, BAD):
                    break
                self._note(int(number), mark == GOOD, len(line) - len(row), len(row))
        self._file.truncate(self.size)
        self._file.seek(self.size)

    def _note(self, number: int, is_good: bool, head: int, size: int) -> None:
        self.lines[number] = is_good
        self._places[number] = (self.size + head, size)
        self.size += head + size

    def add(self, number: int, is_good: bool, row: bytes) -> int:
        """Writes an answer whole, or nothing of it. Returns its size. Raises OSError."""
        assert self._file is not None
        head = b"%d %s " % (number, GOOD if is_good else BAD)
        data = head + row + b"\n"
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
                self._file.seek(self.size)
            raise
        self._note(number, is_good, len(head), len(row) + 1)
        return len(data)

    def read(self, number: int) -> bytes:
        assert self._file is not None
        start, size = self._places[number]
        return os.pread(self._file.fileno(), size, start)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
