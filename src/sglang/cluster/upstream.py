"""Connections to a server: HTTP/1.1 over a unix socket or TCP, an exchange at a time, the body of an answer as the bytes come.

    Upstream --exchange--> Exchange --send--> head of the answer, then --read--> pieces of its body, joined where they pile up

No more than HELD_BYTES of an answer wait here for a slow client: then nothing more is read, and the server stops by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import httptools

from sglang.common.server_process import notice_silence

HELD_BYTES = 64 << 10
MAX_IDLE = 256
"""connections kept open"""
MAX_HEAD_BYTES = 256 << 10
SILENCE_SECONDS = 30
"""without a sign of the other machine, after which a connection counts as lost"""

Headers = list[tuple[bytes, bytes]]


class UpstreamLost(Exception):
    """The connection broke, or could not be made, before the answer had come."""


@dataclass(frozen=True)
class Address:
    """A unix socket, or a host and port."""

    path: str = ""
    host: str = ""
    port: int = 0


@dataclass
class Head:
    """Of an answer."""

    status: int
    headers: Headers


class _Connection(asyncio.Protocol):
    """One exchange at a time."""

    def __init__(self, open_ones: set[_Connection]) -> None:
        """`open_ones`: where it is for as long as it is open."""
        self._open_ones = open_ones
        self.is_lost = False
        self.num_requests = 0
        self._transport: asyncio.Transport | None = None
        self._may_write: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._headers: Headers = []
        self.head: Head | None = None
        self.pieces: list[bytes] = []
        self._held = 0
        self._is_reading = True
        self.is_complete = False
        self.has_heard = False

    # --- the transport ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._open_ones.add(self)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            notice_silence(connection, SILENCE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._open_ones.discard(self)
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._may_write = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._may_write is not None and not self._may_write.done():
            self._may_write.set_result(None)
        self._may_write = None

    def data_received(self, data: bytes) -> None:
        self.has_heard = True
        if self.is_complete:  # an answer that nobody asked for
            self.close()
            return
        if self.head is None:
            self._head_bytes += len(data)
        try:
            if self._head_bytes > MAX_HEAD_BYTES and self.head is None:
                raise httptools.HttpParserError("the head is too large")
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
        self._wake()

    def close(self) -> None:
        self.is_lost = True
        if self._transport is not None:
            self._transport.abort()

    # --- the parser ---------------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.can_go_on = False  # an answer that nobody asked for

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self.is_complete:
            self.head = Head(status, self._headers)
        self._headers = []

    def on_body(self, body: bytes) -> None:
        if self.is_complete:
            return
        self.pieces.append(body)
        self._held += len(body)
        if self._held > HELD_BYTES and self._is_reading and self._transport is not None:
            self._is_reading = False
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.head is not None and not self.is_complete:  # else an interim answer
            self.is_complete = True
            self.can_go_on = self._parser.should_keep_alive()

    # --- one exchange -------------------------------------------------------------------------------------------------------

    async def write(self, head: bytes, body: Iterable[bytes | bytearray]) -> None:
        """Sends a request; returns when the last of it is on its way."""
        assert self._transport is not None
        if self.num_requests:
            self._begin()
        self.num_requests += 1
        self._transport.write(head)
        for piece in body:
            if self.is_lost:
                return
            self._transport.write(piece)
            if self._may_write is not None:
                await self._may_write

    async def wait(self) -> None:
        """Until something has come, or the connection is lost."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self) -> bytes:
        """What has come of the body."""
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self._held = 0
        if not self._is_reading and self._transport is not None and not self.is_lost:
            self._is_reading = True
            self._transport.resume_reading()
        return data


class Exchange:
    """One request and its answer."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._connection: _Connection | None = None
        self._is_closed = False
        self._is_bare = False
        self.was_sent = False
        """whether the server may have seen the request"""

    async def send(self, method: str, target: bytes, headers: Headers, body: Iterable[bytes | bytearray] = ()) -> Head:
        """Sends a request, with the headers as they are and the length of its body among them. Returns the head of its answer. Raises
        UpstreamLost."""
        self._is_bare = method == "HEAD"
        self.was_sent = False
        pieces = list(body)
        while True:
            connection = await self._connect()
            if self._is_closed:
                connection.close()
                raise UpstreamLost
            is_used = connection.num_requests > 0
            self.was_sent = True
            await connection.write(_head(method, target, headers + self._upstream.headers, pieces), pieces)
            while connection.head is None and not connection.is_lost and not self._is_closed:
                await connection.wait()
            if connection.head is not None:
                return connection.head
            connection.close()
            if self._is_closed or not is_used or connection.has_heard:
                raise UpstreamLost
            self.was_sent = False
            # the server closed a connection that was idle at the moment when this request was sent: that one never saw it

    async def read(self) -> bytes:
        """The next bytes of the answer's body; none at its end. Raises UpstreamLost."""
        connection = self._connection
        if connection is None:  # closed meanwhile: the client has left
            raise UpstreamLost
        while not connection.pieces:
            if connection.is_complete or self._is_bare:
                return b""
            if connection.is_lost or self._is_closed:
                raise UpstreamLost
            await connection.wait()
        return connection.take()

    def close(self) -> None:
        """Ends it wherever it is: a server that is not done yet sees that its client has gone."""
        if self._is_closed:
            return
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.is_complete and not connection.pieces and not connection.is_lost and connection.can_go_on:
            self._upstream.keep(connection)
        else:
            connection.close()

    async def _connect(self) -> _Connection:
        if self._is_closed:
            raise UpstreamLost
        connection = self._connection = await self._upstream.connect()
        return connection


def _head(method: str, target: bytes, headers: Headers, body: list[bytes | bytearray]) -> bytes:
    lines = [b"%b %b HTTP/1.1\r\n" % (method.encode(), target)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d\r\n" % sum(map(len, body)))
    return b"".join([*lines, b"\r\n"])


class Upstream:
    """The connections to one server. Everything happens on one event loop."""

    def __init__(self, address: Address, headers: Headers | None = None) -> None:
        """`headers`: that every request gets besides its own."""
        self._address = address
        self.headers = headers or []
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    def exchange(self) -> Exchange:
        return Exchange(self)

    async def connect(self) -> _Connection:
        """One that is idle, else a new one. Raises UpstreamLost."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_lost:
                return connection
        loop, address = asyncio.get_running_loop(), self._address
        try:
            if address.path:
                _, new = await loop.create_unix_connection(lambda: _Connection(self._open), address.path)
            else:
                _, new = await loop.create_connection(lambda: _Connection(self._open), address.host, address.port)
        except OSError as error:
            raise UpstreamLost from error
        return new

    def keep(self, connection: _Connection) -> None:
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def break_off(self) -> None:
        """Whoever waits for this server has lost it."""
        for connection in list(self._open):
            connection.close()

    async def ask(self, method: str, path: str, headers: Headers | None = None, body: bytes = b"") -> tuple[Head, bytes]:
        """A short request of our own, and all of its answer. Raises UpstreamLost."""
        exchange = self.exchange()
        try:
            head = await exchange.send(
                method, path.encode(), [(b"host", b"localhost"), *(headers or [])], [body] if body else []
            )
            pieces = []
            while piece := await exchange.read():
                pieces.append(piece)
            return head, b"".join(pieces)
        finally:
            with contextlib.suppress(RuntimeError):
                exchange.close()
