"""Rank 0's connection to one other rank: a process of its own, or a TCP connection to another machine. Frames are those of wire.py."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import IO, Protocol

from sglang.common.interrupts import children_without_interrupts
from sglang.common.server_process import notice_silence
from sglang.srt.model.distributed.wire import End, encode, read_frame, write_frame

LAST_SECONDS = 5.0
SILENCE_SECONDS = 30
"""without a sign of the other machine, after which a connection counts as broken"""


class Link(Protocol):
    """`name`: of the rank, for messages."""

    name: str
    pid: int | None

    def send(self, frame: bytes) -> None:
        """Raises OSError or ValueError when the rank is gone."""
        ...

    def receive(self) -> bytes | None:
        """The next frame; None at the end. Waits for it."""
        ...

    def wait(self) -> str:
        """Until the rank is gone: how, in words. Called after the last frame that is expected."""
        ...

    def end(self) -> None:
        """Lets the rank end. Does not wait, and may be called twice."""
        ...

    def join(self) -> None:
        """Until it has ended, after `end`."""
        ...


class ProcessLink:
    """A child process: frames go to its standard input, and come from a pipe. It ends when its input closes, however this process
    ends."""

    def __init__(self, rank: int) -> None:
        self.name = f"rank {rank}"
        ours, theirs = os.pipe()
        with children_without_interrupts():
            self._process = subprocess.Popen(follower_command(0, theirs), stdin=subprocess.PIPE, pass_fds=[theirs])
        os.close(theirs)
        self.pid: int | None = self._process.pid
        self._replies = os.fdopen(ours, "rb")
        assert self._process.stdin is not None
        self._input: IO[bytes] = self._process.stdin

    def send(self, frame: bytes) -> None:
        write_frame(self._input, frame)

    def receive(self) -> bytes | None:
        return read_frame(self._replies)

    def wait(self) -> str:
        return f"died (status {self._process.wait()})"

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._input.close()

    def join(self) -> None:
        try:
            self._process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()


class SocketLink:
    """A rank on another machine (node.py), over a connection that has shown its token (handshake.py)."""

    def __init__(self, rank: int, node: int, connection: socket.socket) -> None:
        self.name = f"rank {rank} (node {node} at {connection.getpeername()[0]})"
        self.pid: int | None = None
        keep_alive(connection)
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._writer = connection.makefile("wb")

    def send(self, frame: bytes) -> None:
        write_frame(self._writer, frame)

    def receive(self) -> bytes | None:
        try:
            return read_frame(self._reader)
        except OSError:
            return None

    def wait(self) -> str:
        while self.receive() is not None:
            pass
        return "is gone: its connection ended"

    def end(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._connection.settimeout(LAST_SECONDS)
            self.send(encode(End()))
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self._connection.close()


def follower_command(reads: int, writes: int) -> list[str]:
    """The process of a rank, which takes frames from one file descriptor and answers on another."""
    return [sys.executable, "-m", "sglang.srt.model.distributed.follower", str(reads), str(writes)]


def keep_alive(connection: socket.socket) -> None:
    """Small frames leave at once; a machine that vanished without a word is noticed."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    notice_silence(connection, SILENCE_SECONDS)
