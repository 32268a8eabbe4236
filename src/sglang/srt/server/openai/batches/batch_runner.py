"""Which batches run: the oldest of every client, side by side, so that no client waits for the batches of another.

The servers of one machine may share the folder: one of them runs the batches, and another takes over when it ends or dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

from sglang.common.batch_run import wait_for_event
from sglang.common.database import StoreThread
from sglang.srt.config import BatchOptions
from sglang.srt.errors import OverloadError
from sglang.srt.server.limits.shares import Shares
from sglang.srt.server.openai.batches.batch_job import Job
from sglang.srt.server.openai.batches.batch_records import BatchRecord
from sglang.srt.server.openai.batches.batch_store import BatchStore
from sglang.srt.server.openai.batches.row_calls import RowCalls
from sglang.srt.server.openai.batches.stored_files import StoredFiles, unwritable

logger = logging.getLogger("sglang")

LOOK_SECONDS = 2.0
"""between two looks at what other processes have done"""
CLEAN_SECONDS = 600.0
MAX_RUNNING = 4
"""of an owner: the others wait on the disk, and need no memory"""


class BatchRunner:
    """Owner of the files, of what is known of them, and of the batches that run. Everything runs on one event loop."""

    def __init__(self, options: BatchOptions) -> None:
        """Raises ConfigError for a folder that cannot be used."""
        self.files = StoredFiles(options)
        self.store = StoreThread(lambda: BatchStore(self.files.folder / "batches.sqlite3"), unwritable)
        self.calls: RowCalls | None = None
        """how requests are sent; set before `run`"""
        self._places = Shares(options.window, options.window, "requests of batches")
        self._turns = Shares(1, 1, "batches that are read")
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._wanted = asyncio.Event()

    def wake(self, name: str | None = None) -> None:
        """There is something new: a batch, or what a client wants of one."""
        self._wanted.set()
        if name in self._jobs:
            self._jobs[name][0].wake()

    async def run(self) -> None:
        """Until it is cancelled; requests on their way are then asked for again after the next start."""
        lock = os.open(self.files.folder / "runner.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _locked(lock):
                await asyncio.sleep(LOOK_SECONDS)
            await self._run_all()
        finally:
            tasks = [task for _, task in self._jobs.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            os.close(lock)

    def close(self) -> None:
        self.store.close(BatchStore.close)

    async def _run_all(self) -> None:
        cleaned = -CLEAN_SECONDS
        while True:
            self._wanted.clear()
            try:
                if time.monotonic() - cleaned >= CLEAN_SECONDS:
                    cleaned = time.monotonic()
                    await self.store.do(self.files.clean)
                self._start_all(await self.store.do(BatchStore.unfinished))
            except OverloadError as error:
                logger.warning("batches wait: %s", error)
            await wait_for_event(self._wanted, LOOK_SECONDS)

    def _start_all(self, batches: list[BatchRecord]) -> None:
        for batch in batches:
            if batch.id not in self._jobs and self._may_start(batch):
                assert self.calls is not None
                job = Job(batch, self.files, self.store, self.calls, self._places, self._turns)
                self._jobs[batch.id] = job, asyncio.create_task(self._run_one(job))

    def _may_start(self, batch: BatchRecord) -> bool:
        """Those that are cancelled, or late, do not wait behind those that have a long way to go."""
        num_running = sum(job.batch.owner == batch.owner and not task.done() for job, task in self._jobs.values())
        is_ending = batch.status == "cancelling" or time.time() >= batch.expires_at
        return num_running < MAX_RUNNING + is_ending

    async def _run_one(self, job: Job) -> None:
        try:
            await job.run()
        except Exception:  # noqa: BLE001  the other batches go on, and this one after the next start
            logger.exception("batch %s stopped", job.batch.id)
            return
        finally:
            self._wanted.set()
        del self._jobs[job.batch.id]


def _locked(lock: int) -> bool:
    """Whether this process is the one that runs the batches of the folder."""
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
