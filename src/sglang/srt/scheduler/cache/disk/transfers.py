"""Jobs between the pool and the disk, and the threads that do them. A job never holds up a step:

    Load    disk -> buffer -> slots that were reserved for it         the reader's thread
    Save    slots of nodes that are locked -> buffer -> disk          the writer's thread
    Rescan  what another server has written                           the reader's thread
    Staged  slots that are about to be evicted -> buffer, in the step;  buffer -> disk: the writer's thread

A job touches the pool only while it holds its own lock, for one copy of a record, and never waits for the disk with it. So whoever
needs the memory cancels the job and has it at once.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import Int32Array, KVRuns
from sglang.srt.scheduler.cache.disk.names import Prefix
from sglang.srt.scheduler.cache.disk.records import Entry, payload_crc
from sglang.srt.scheduler.cache.disk.store import Store


class Transfer:
    """A job that touches the pool until it is done or cancelled."""

    def __init__(self) -> None:
        self.is_done = False
        self._cancelled = threading.Event()
        self._pool = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """The pool is not touched any more when this returns."""
        with self._pool:
            self._cancelled.set()

    def run(self, store: Store, runs: KVRuns) -> None:
        """The side thread's part."""
        raise NotImplementedError


class Load(Transfer):
    """Reads `records`, which the store has found, into the runs that begin at `slots`. When it is done, the first `num_read` are there."""

    def __init__(self, records: Sequence[Any], slots: Sequence[int]) -> None:
        super().__init__()
        self._records, self._slots = records, slots
        self.num_tier: dict[str, int] = {}
        """records that were read, by where they were"""
        self.num_read = 0
        self.seconds = 0.0
        """what reading took"""

    @property
    def keys(self) -> list[bytes]:
        return [record.entry.key for record in self._records]

    def run(self, store: Store, runs: KVRuns) -> None:
        began = time.perf_counter()
        buffer = np.empty(runs.run_bytes, np.uint8)
        for i, record in enumerate(self._records):
            if self._cancelled.is_set() or not store.read(record, buffer):
                break
            with self._pool:
                if self._cancelled.is_set():
                    break
                self._put(runs, i, buffer)
            self.num_read += 1
            tier = store.tier_of(record)
            self.num_tier[tier] = self.num_tier.get(tier, 0) + 1
        self.seconds = time.perf_counter() - began

    def _put(self, runs: KVRuns, i: int, data: npt.NDArray[np.uint8]) -> None:
        """Puts record i into the pool."""
        runs.write(self._slots[i], data)


class Save(Transfer):
    """Writes the records of a prefix that the store lacks, which lies in `slots` [n * run]."""

    def __init__(self, prefix: Prefix, slots: Int32Array) -> None:
        super().__init__()
        self.num_tokens = len(prefix)
        self.is_complete = False
        """whether the store has all of it"""
        self.until = math.inf
        """when it stops, done or not (time.monotonic)"""
        self._prefix, self._slots = prefix, slots

    def run(self, store: Store, runs: KVRuns) -> None:
        run, parent = runs.run, self._prefix.root
        buffer = np.empty(runs.run_bytes, np.uint8)
        for i, key in enumerate(self._prefix.keys(run)):
            if not self._may_go_on:
                return
            if not store.has(key):
                part = slice(run * i, run * (i + 1))
                with self._pool:
                    if self._cancelled.is_set():
                        return
                    runs.read(self._slots[part], buffer)
                if not self._append(store, key, parent, self._prefix.ids[part], buffer):
                    return
            parent = key
        self.is_complete = True

    @property
    def _may_go_on(self) -> bool:
        return not self._cancelled.is_set() and time.monotonic() <= self.until

    def _append(self, store: Store, key: bytes, parent: bytes, ids: Int32Array, payload: npt.NDArray[np.uint8]) -> bool:
        return store.append(make_entry(key, parent, ids, payload), payload)


class Staged(Transfer):
    """A record that has left the pool."""

    def __init__(self, key: bytes, parent: bytes, ids: Int32Array, payload: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self.key, self.parent, self.ids, self.payload = key, parent, ids, payload

    def run(self, store: Store, runs: KVRuns) -> None:
        if not store.has(self.key):
            store.append(make_entry(self.key, self.parent, self.ids, self.payload), self.payload)


class Rescan(Transfer):
    """Looks for what another server has written."""

    def run(self, store: Store, runs: KVRuns) -> None:
        store.rescan()


def make_entry(key: bytes, parent: bytes, ids: Int32Array, payload: npt.NDArray[np.uint8]) -> Entry:
    return Entry(key, parent, np.ascontiguousarray(ids, dtype="<i4").tobytes(), payload_crc(key, payload))


class TransferThread:
    """Does jobs one after another. A daemon: a disk that hangs keeps no process alive."""

    def __init__(self, name: str, store: Store, runs: KVRuns) -> None:
        self._store, self._runs = store, runs
        self._jobs: queue.SimpleQueue[Transfer | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, job: Transfer) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.run(self._store, self._runs)
            finally:
                job.is_done = True

    def close(self, seconds: float) -> bool:
        """Ends the thread after the jobs that it has. Whether it has ended within the time."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()
