"""HTTP/1.1 over plain TCP for httpx: a pool of keep-alive connections without a linear search.

httpx's own pool searches all its connections at each request. Here idle connections are a stack, and each connection has one timer for
all its time-outs. TLS and proxies stay with httpx. Requests per processor second of the client, against a server of the default model on
two cores (benchmarks/http_client.py):

    requests at once      1       16      256
    this transport     1035     2965     3195
    httpx's own         528      509      118
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from sglang.common.interrupts import wait_for

MAX_HEAD_LEN = 1 << 16
_READ_LEN = 1 << 16


class _Connection:
    """A socket, and the moment by which it must have said something."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.timed_out = False
        self.num_requests = 0
        self._deadline = 0.0
        self._timeout: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def is_alive(self) -> bool:
        return not self.reader.at_eof() and not self.writer.is_closing()

    def watch(self, timeout: float | None) -> None:
        """From now on every read must bring something within `timeout` seconds."""
        self._timeout = timeout
        if timeout is not None:
            self.touch()
            self._timer = self._loop.call_later(timeout, self._check)

    def touch(self) -> None:
        if self._timeout is not None:
            self._deadline = self._loop.time() + self._timeout

    def _check(self) -> None:
        left = self._deadline - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
            return
        self.timed_out = True
        self.writer.transport.abort()

    def rest(self) -> None:
        """No request is under way: nothing is expected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        self.rest()
        self.writer.close()

    def failure(self, error: Exception, what: str) -> httpx.TransportError:
        if self.timed_out:
            return httpx.ReadTimeout(f"nothing was received in time while {what}")
        if isinstance(error, asyncio.IncompleteReadError):
            return httpx.RemoteProtocolError(f"the server closed the connection while {what}")
        if isinstance(error, (asyncio.LimitOverrunError, ValueError)):
            return httpx.RemoteProtocolError(f"the server broke the rules of HTTP while {what}: {error}")
        return httpx.ReadError(f"the connection broke while {what}: {error or type(error).__name__}")


_BROKEN = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError)


class PlainTransport(httpx.AsyncBaseTransport):
    """Connections to `host`:`port`, at most `max_idle` of them kept while unused."""

    def __init__(self, host: str, port: int, max_idle: int) -> None:
        self._host = host
        self._port = port
        self._max_idle = max_idle
        self._idle: list[_Connection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        data = _head(request) + await request.aread()
        while True:
            connection = await self._take(timeouts.get("connect"))
            connection.watch(timeouts.get("read"))
            connection.num_requests += 1
            try:
                connection.writer.write(data)
                await connection.writer.drain()
                head = await connection.reader.readuntil(b"\r\n\r\n")
                connection.touch()
                status, headers = _parse_head(head)
            except _BROKEN as error:
                connection.close()
                # a kept connection that the server has closed meanwhile says nothing about the server
                if connection.num_requests > 1 and not connection.timed_out and not getattr(error, "partial", b""):
                    continue
                raise connection.failure(error, "waiting for the answer") from error
            except asyncio.CancelledError:
                connection.close()
                raise
            return httpx.Response(status, headers=headers, stream=_Body(self, connection, request.method, status, headers))

    async def _take(self, timeout: float | None) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_alive:
                return connection
            connection.close()
        try:
            opening = asyncio.open_connection(self._host, self._port, limit=MAX_HEAD_LEN)
            return _Connection(*await wait_for(opening, timeout))
        except asyncio.TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {self._host}:{self._port} in time") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error

    def put_back(self, connection: _Connection) -> None:
        connection.rest()
        if connection.is_alive and len(self._idle) < self._max_idle:
            self._idle.append(connection)
        else:
            connection.close()

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop().close()


class _Body(httpx.AsyncByteStream):
    """The answer's bytes. Read to the end it gives its connection back; closed before, it closes it."""

    def __init__(
        self, transport: PlainTransport, connection: _Connection, method: str, status: int, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection
        fields = {name.lower(): value.lower() for name, value in headers}
        self._keep = fields.get(b"connection") != b"close"
        self._chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
        length = fields.get(b"content-length")
        self._length = int(length) if length is not None and length.isdigit() else None
        if method == "HEAD" or status in (204, 304):
            self._chunked, self._length = False, 0
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        if connection is None:
            return
        try:
            source = self._chunks(connection) if self._chunked else self._plain(connection)
            async for data in source:
                connection.touch()
                yield data
        except _BROKEN as error:
            raise connection.failure(error, "receiving the answer") from error
        self._ended = True

    async def _plain(self, connection: _Connection) -> AsyncIterator[bytes]:
        left = self._length
        self._keep = self._keep and left is not None
        while left is None or left > 0:
            data = await connection.reader.read(_READ_LEN if left is None else min(left, _READ_LEN))
            if not data:
                if left is None and not connection.timed_out:
                    return
                raise asyncio.IncompleteReadError(data, left)
            left = left if left is None else left - len(data)
            yield data

    async def _chunks(self, connection: _Connection) -> AsyncIterator[bytes]:
        reader = connection.reader
        while True:
            line = await reader.readuntil(b"\n")
            left = int(line.split(b";")[0], 16)
            if left == 0:
                while (await reader.readuntil(b"\n")).strip():
                    pass  # trailers
                return
            while left > 0:
                data = await reader.read(min(left, _READ_LEN))
                if not data:
                    raise asyncio.IncompleteReadError(data, left)
                left -= len(data)
                yield data
            await reader.readexactly(2)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._ended and self._keep:
            self._transport.put_back(connection)
        else:
            connection.close()


def _head(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % pair for pair in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _parse_head(head: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Raises ValueError for what is not a head of HTTP/1."""
    first, *lines = head[:-4].split(b"\r\n")
    version, _, rest = first.partition(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError(f"the answer begins with {first[:40]!r}")
    headers = []
    for line in lines:
        name, separator, value = line.partition(b":")
        if not separator:
            raise ValueError(f"not a header: {line[:40]!r}")
        headers.append((name.strip(), value.strip()))
    return int(rest[:3]), headers
