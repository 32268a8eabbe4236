"""Rank 0: starts the other ranks, sends them every step before computing its own part, and watches them.

    scheduler process      Scheduler -> ParallelWorker -> LocalWorker of rank 0
      |  stdin: steps; its end is ours            |  gloo or nccl
      rank 1 .. size - 1   follower.py -> LocalWorker of its rank

A rank's standard input closes when rank 0 dies, however it dies, and the rank ends with it. When another rank dies, `on_death`
is called on its own thread; by default the next step raises.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import msgspec

from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import AdapterOptions, DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.config_codec import encode_config
from sglang.srt.errors import ConfigError, EngineDeadError
from sglang.srt.forward_batch import ForwardBatch, ForwardOutput, Int32Array, Loading, VocabMasks
from sglang.srt.media_item import EncodeJob, MediaItem
from sglang.srt.model.adapters.store import AdapterStore
from sglang.srt.model.distributed.wire import (
    Bind,
    ForgetAdapter,
    LoadAdapter,
    Message,
    PlaceAdapter,
    TableDiff,
    encode,
    pack_step,
    read_frame,
    write_frame,
)
from sglang.srt.model.worker import LocalWorker, create_rank

logger = logging.getLogger("sglang")

LAST_SECONDS = 5.0


class RankConfig(msgspec.Struct):
    """The first message to a follower."""

    rank: int
    directory: str
    model: ModelOptions
    device: DeviceOptions
    memory: MemoryOptions
    adapters: AdapterOptions | None = None


class RankStatus(msgspec.Struct):
    """A follower's only reply: `error` is None when its part is loaded."""

    error: str | None = None


class Followers:
    """The processes of ranks 1 .. size - 1."""

    def __init__(
        self, model: ModelOptions, device: DeviceOptions, memory: MemoryOptions, adapters: AdapterOptions | None = None
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sglang-ranks-"))  # 0700
        self._closing = False
        self.failure: str | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._status: list[IO[bytes]] = []
        for rank in range(1, device.tp_size):
            config = RankConfig(rank, str(self.directory), model, device, memory, adapters)
            self._start(config)
        self._close_at_exit = weakref.finalize(self, _end, self._processes, self.directory, os.getpid())

    def _start(self, config: RankConfig) -> None:
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", "sglang.srt.model.distributed.follower", str(theirs)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs])
        os.close(theirs)
        self._processes.append(process)
        self._status.append(os.fdopen(ours, "rb"))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # died at once: `wait_ready` tells
            write_frame(process.stdin, encode_config(config))

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def wait_ready(self) -> None:
        """Waits until every rank has loaded its part. Raises ConfigError with the reason of the first that failed."""
        for rank, stream in enumerate(self._status, start=1):
            data = read_frame(stream)
            stream.close()
            if data is None:
                raise ConfigError(f"rank {rank} ended while it loaded its part of the model; the log says more")
            status = msgspec.msgpack.decode(data, type=RankStatus)
            if status.error is not None:
                raise ConfigError(f"rank {rank}: {status.error}")

    def watch(self, on_death: Callable[[str], None] | None) -> None:
        """Calls `on_death` from a side thread when a rank ends before `close`."""
        for rank, process in enumerate(self._processes, start=1):
            threading.Thread(target=self._watch_one, args=(rank, process, on_death), name=f"rank {rank}", daemon=True).start()

    def _watch_one(self, rank: int, process: subprocess.Popen[bytes], on_death: Callable[[str], None] | None) -> None:
        code = process.wait()
        if self._closing:
            return
        self.failure = f"rank {rank} of the model died (status {code})"
        logger.error("%s.", self.failure)
        if on_death is not None:
            on_death(self.failure)

    def send(self, message: Message) -> None:
        """Raises EngineDeadError when a rank is gone."""
        data = encode(message)
        try:
            for process in self._processes:
                assert process.stdin is not None
                write_frame(process.stdin, data)
        except (OSError, ValueError) as error:
            raise EngineDeadError(self.failure or "a rank of the model is gone") from error

    def close(self) -> None:
        """Ends the ranks: they see their input close."""
        self._closing = True
        self._close_at_exit()


def _end(processes: list[subprocess.Popen[bytes]], directory: Path, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that has the ranks
        return
    for process in processes:
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
    for process in processes:
        try:
            process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    shutil.rmtree(directory, ignore_errors=True)


def create_parallel_worker(
    model: ModelOptions,
    device: DeviceOptions,
    memory: MemoryOptions,
    on_death: Callable[[str], None] | None = None,
    adapters: AdapterOptions | None = None,
) -> ParallelWorker:
    """Starts all ranks and loads the model in parts. Raises ConfigError, ModelError or CapacityError with one sentence."""
    model = replace(model, files=find_files(model))  # one downloads, not all
    followers = Followers(model, device, memory, adapters)
    try:
        local = create_rank(model, device, memory, 0, followers.directory, adapters)
        followers.wait_ready()
    except BaseException as error:
        if isinstance(error, RuntimeError):  # of a collective: another rank has ended, and said why
            followers.wait_ready()
        followers.close()
        raise
    followers.watch(on_death)
    return ParallelWorker(local, followers)


class ParallelAdapters:
    """Every rank has its part of each adapter (forward_batch.AdapterWorker)."""

    def __init__(self, local: AdapterStore, followers: Followers) -> None:
        self._local, self._followers = local, followers
        self.num_slots = local.num_slots

    def load(self, uid: int, path: str) -> Loading:
        self._followers.send(LoadAdapter(uid, path))
        return self._local.load(uid, path)

    def place(self, uid: int, slot: int) -> None:
        self._followers.send(PlaceAdapter(uid, slot))
        self._local.place(uid, slot)

    def forget(self, uid: int) -> None:
        self._followers.send(ForgetAdapter(uid))
        self._local.forget(uid)


class ParallelWorker:
    """The scheduler's worker when there are several ranks (forward_batch.ModelWorker)."""

    def __init__(self, local: LocalWorker, followers: Followers) -> None:
        self.info = local.info
        self._local = local
        self.followers = followers
        self.adapters = ParallelAdapters(local.adapters, followers) if local.adapters is not None else None
        self._diff: TableDiff | None = None

    def bind(self, req_to_token: Int32Array) -> None:
        self._diff = TableDiff(req_to_token)
        self.followers.send(Bind(*req_to_token.shape))
        self._local.bind(req_to_token)

    def forward(self, batch: ForwardBatch) -> None:
        assert self._diff is not None, "bind comes first"
        if self.followers.failure is not None:
            raise EngineDeadError(self.followers.failure)
        changes = self._diff.changes(batch.req_pool_idx, batch.seq_lens)
        self.followers.send(pack_step(batch, changes, lambda rows: self._local.ops.fetch(rows).result()))
        try:
            self._local.forward(batch)
        except RuntimeError as error:  # of a collective: a rank has gone in the middle of it
            raise EngineDeadError(self.followers.failure or f"the ranks of the model lost each other: {error}") from error

    def sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> ForwardOutput:
        return self._local.sample(batch, masks)

    def begin_sample(self, batch: ForwardBatch, masks: VocabMasks | None) -> Callable[[], ForwardOutput]:
        return self._local.begin_sample(batch, masks)

    def finish(self) -> None:
        self._local.finish()

    def check_item(self, item: MediaItem) -> None:
        self._local.check_item(item)

    def encode(self, item: MediaItem) -> EncodeJob:
        return self._local.encode(item)

    def encode_some(self, seconds: float) -> bool:
        return self._local.encode_some(seconds)

    def get_ready(self, num_used: int) -> bool:
        return self._local.get_ready(num_used)

    def close(self) -> None:
        self.followers.close()
