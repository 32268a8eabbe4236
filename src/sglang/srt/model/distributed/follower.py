"""The process of a rank other than the first: computes its part of every step that rank 0 sends.

    python -m sglang.srt.model.distributed.follower STATUS_FD      started by leader.py; configuration and steps come on stdin

When standard input closes, rank 0 has ended, and this process ends too.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from sglang.srt.config_codec import decode_config
from sglang.srt.errors import SglangError
from sglang.srt.model.distributed.leader import RankConfig, RankStatus
from sglang.srt.model.distributed.wire import (
    Bind,
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


def _read_on(stream: IO[bytes], steps: queue.SimpleQueue[Message]) -> None:
    """Takes messages off the pipe, so that rank 0 never waits for room in it; ends the process with the stream."""
    while (data := read_frame(stream)) is not None:
        steps.put(decode(data))
    os._exit(0)  # wherever the main thread is: perhaps in a sum that will never be complete


def _compute(worker: LocalWorker, steps: queue.SimpleQueue[Message]) -> None:
    first = steps.get()
    assert isinstance(first, Bind)
    table = np.zeros((first.num_rows, first.context_len), np.int32)
    worker.bind(table)
    while True:
        step = steps.get()
        assert not isinstance(step, Bind)
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
    data = read_frame(sys.stdin.buffer)
    if data is None:
        os._exit(1)
    config = decode_config(data, RankConfig)
    configure_logging("warning")
    steps: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read_on, args=(sys.stdin.buffer, steps), name="life-line", daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "wb") as status:
        try:
            worker = create_rank(
                config.model, config.device, config.memory, config.rank, Path(config.directory), config.adapters
            )
        except SglangError as error:
            write_frame(status, msgspec.msgpack.encode(RankStatus(str(error))))
            os._exit(1)
        write_frame(status, msgspec.msgpack.encode(RankStatus()))
    _compute(worker, steps)


if __name__ == "__main__":
    main()
