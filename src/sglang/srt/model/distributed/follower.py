"""The process of a rank other than the first: computes its part of every step that rank 0 sends.

    python -m sglang.srt.model.distributed.follower READ_FD WRITE_FD

Configuration and steps come on READ_FD, and two replies go out on WRITE_FD. Started by links.py, READ_FD is standard input. On
another machine, started by node.py, both are a TCP connection to rank 0, and standard input has what is special to that machine. When either
closes, this process ends.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from dataclasses import replace

import msgspec
import numpy as np

from sglang.srt.config import ModelFiles, ModelOptions
from sglang.srt.config_codec import decode_config
from sglang.srt.errors import SglangError
from sglang.srt.model.distributed.leader import RankConfig, RankStatus, identify
from sglang.srt.model.distributed.ranks import LOOPBACK, Join, Ranks, join
from sglang.srt.model.distributed.wire import (
    Bind,
    End,
    ForgetAdapter,
    LoadAdapter,
    Message,
    PlaceAdapter,
    Step,
    decode,
    read_frame,
    unpack_step,
    write_frame,
)
from sglang.srt.model.worker import LocalWorker, create_rank
from sglang.srt.process.logs import configure_logging

OVER, FAILED, LOST = 0, 1, 3
"""exit status: rank 0 ended in order; this rank cannot take part, and its last line says why; rank 0 is gone"""


class OfThisMachine(msgspec.Struct):
    """What rank 0 cannot know of another machine."""

    model: ModelOptions
    threads: int | None


class _Rank:
    """This process's connection to rank 0, until its part is loaded."""

    def __init__(self, reads: int, writes: int) -> None:
        self.is_remote = reads != 0
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._requests, self._replies = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")
        config = read_frame(self._requests)
        if config is None:
            os._exit(LOST)
        self._config = decode_config(config, RankConfig)
        self._address = LOOPBACK
        if self.is_remote:
            self._settle(reads)

    def _settle(self, connection: int) -> None:
        """On another machine than rank 0."""
        own = read_frame(sys.stdin.buffer)
        if own is None:
            os._exit(LOST)
        here = decode_config(own, OfThisMachine)
        places = {name: getattr(here.model, name) for name in ("model_path", "download_dir", "weights_cache")}
        self._config.model = replace(self._config.model, files=None, **places)
        self._config.device = replace(self._config.device, threads=here.threads)
        with socket.socket(fileno=os.dup(connection)) as own_end:
            self._address = str(own_end.getsockname()[0])
        threading.Thread(target=_end_with_node, name="life-line", daemon=True).start()

    def read_on(self) -> None:
        """Takes messages off the stream, so that rank 0 never waits for room in it; ends the process with the stream."""
        try:
            while (data := read_frame(self._requests)) is not None:
                message = decode(data)
                if isinstance(message, End):
                    self._end(message.reason)
                self.messages.put(message)
        except OSError:
            pass
        os._exit(LOST)  # wherever the main thread is: perhaps in a sum that will never be complete

    def _end(self, reason: str) -> None:
        if reason and self.is_remote:  # rank 0 says it on its own machine
            print(f"node 0: {reason}", file=sys.stderr, flush=True)
        os._exit(FAILED if reason else OVER)

    def load(self) -> LocalWorker:
        """Ends the process if it fails."""
        config = self._config
        try:
            worker = create_rank(config.model, config.device, config.memory, config.rank, self._meet, config.adapters)
        except SglangError as error:
            self._reply(RankStatus(str(error)))
            if self.is_remote:
                print(f"rank {config.rank}: {error}", file=sys.stderr, flush=True)
            os._exit(FAILED)
        self._reply(RankStatus())
        return worker

    def _meet(self, device: str, kernels: str, files: ModelFiles) -> Ranks:
        self._reply(RankStatus(identity=identify(files, kernels) if self.is_remote else None))
        where = self.messages.get()
        assert isinstance(where, Join)
        rank, options = self._config.rank, self._config.device
        return join(where, rank, options.tp_size, device, self._address, options.deterministic)

    def _reply(self, status: RankStatus) -> None:
        try:
            write_frame(self._replies, msgspec.msgpack.encode(status))
        except OSError:
            os._exit(LOST)


def _end_with_node() -> None:
    while os.read(0, 4096):
        pass
    os._exit(LOST)


def _compute(worker: LocalWorker, steps: queue.SimpleQueue[Message]) -> None:
    first = steps.get()
    assert isinstance(first, Bind)
    table = np.zeros((first.num_rows, first.context_len), np.int32)
    worker.bind(table)
    while True:
        step = steps.get()
        assert not isinstance(step, Bind | Join | End)
        if isinstance(step, Step):
            worker.forward(unpack_step(step, table, worker.embed_width, worker.ops.array))
        else:
            _adapt(worker, step)


def _adapt(worker: LocalWorker, message: LoadAdapter | PlaceAdapter | ForgetAdapter) -> None:
    """Rank 0 has read the same file, or does; one that it could not read is forgotten here as well."""
    store = worker.adapters
    assert store is not None
    if isinstance(message, LoadAdapter):
        store.load(message.uid, message.path)
    elif isinstance(message, PlaceAdapter):
        store.finish_loading()
        store.place(message.uid, message.slot)
    else:
        store.finish_loading()
        store.forget(message.uid)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; rank 0 decides
        signal.signal(number, signal.SIG_IGN)
    configure_logging("warning")
    rank = _Rank(int(sys.argv[1]), int(sys.argv[2]))
    threading.Thread(target=rank.read_on, name="messages", daemon=True).start()
    _compute(rank.load(), rank.messages)


if __name__ == "__main__":
    main()
