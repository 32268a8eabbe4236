"""Message passing between the server and the scheduler's process over a private unix socket (within one process: relay.py).

    server side (asyncio)                        scheduler side (a plain loop)
    SocketServerEnd   <-- msgpack over zmq -->   SocketSchedulerEnd

Sockets are in a directory that only the user can enter (0700), with new ones for every scheduler that is started, so that a
restarted scheduler never reads messages for its predecessor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections import deque
from pathlib import Path

import msgspec
import zmq

from sglang.srt.messages import FromScheduler, ToScheduler, decode_from_scheduler, decode_to_scheduler, encode

logger = logging.getLogger("sglang")


class SocketServerEnd:
    """The server's end. `directory` is handed to the scheduler process; `close` removes it.

    The socket is watched by the event loop directly: zmq's own asyncio layer costs more than the message it brings.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sglang-"))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._pull = self._context.socket(zmq.PULL)
        for socket, name in ((self._push, "to_scheduler"), (self._pull, "from_scheduler")):
            socket.setsockopt(zmq.LINGER, 0)
            socket.set_hwm(0)
            socket.bind(f"ipc://{self.directory / name}")
        self._outgoing: list[bytes] = []
        self._messages: deque[FromScheduler] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def send(self, message: ToScheduler) -> None:
        """Queues the message; never blocks. To be called on the event loop, whose turn's messages travel together: handing one
        over costs as much as making it. Without a scheduler at the other end they are dropped: that one's death ends all its
        requests anyway."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(encode(message))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and not self._push.closed:
            with contextlib.suppress(zmq.Again):
                self._push.send_multipart(outgoing, zmq.NOBLOCK)

    async def receive(self) -> FromScheduler:
        """The next message. For one caller at a time."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._pull.fileno(), self._read)
            self._read()
        while not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._messages.popleft()

    def _read(self) -> None:
        """Takes in all there is. zmq tells of new messages only once it has been asked until there were none."""
        while True:
            try:
                self._messages.append(decode_from_scheduler(self._pull.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
            except msgspec.DecodeError as error:  # only the scheduler can enter the directory: a bug of ours
                logger.error("The scheduler sent something that is not a message: %s", error)
        if self._messages and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._pull.fileno())
        self._flush()
        self._push.close()
        self._pull.close()
        self._context.term()
        shutil.rmtree(self.directory, ignore_errors=True)


class SocketSchedulerEnd:
    """The scheduler's end: an Inbox and an Outbox (messages.py)."""

    def __init__(self, directory: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        self._push = self._context.socket(zmq.PUSH)
        for socket in (self._pull, self._push):
            socket.set_hwm(0)
        self._push.setsockopt(zmq.LINGER, 1000)
        self._pull.connect(f"ipc://{directory}/to_scheduler")
        self._push.connect(f"ipc://{directory}/from_scheduler")

    def receive(self, timeout: float) -> list[ToScheduler]:
        messages: list[ToScheduler] = []
        if timeout > 0 and not self._pull.poll(int(timeout * 1000) + 1):
            return messages
        while True:
            try:
                parts = self._pull.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            for part in parts:
                try:
                    messages.append(decode_to_scheduler(part))
                except msgspec.DecodeError as error:
                    logger.error("Dropped something that is not a message: %s", error)

    def send(self, message: FromScheduler) -> None:
        self._push.send(encode(message))

    def let_read(self) -> None:
        """Another process reads: its time is not ours to give."""

    def close(self) -> None:
        """Waits, for a second at most, until what was sent is on its way."""
        self._pull.close()
        self._push.close()
        self._context.term()
