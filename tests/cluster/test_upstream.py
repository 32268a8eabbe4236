"""Connections to a server: what goes over them, and what happens when one side is slow, late or gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sglang.cluster.upstream import HELD_BYTES, Address, Upstream, UpstreamLost

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HOST = [(b"host", b"x")]


@contextlib.asynccontextmanager
async def server_of(handler: Handler) -> AsyncIterator[Upstream]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream = Upstream(Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
    try:
        yield upstream
    finally:
        upstream.close()
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(size)


async def body_of(upstream: Upstream, method: str = "GET", body: list[bytes] | None = None) -> bytes:
    exchange = upstream.exchange()
    try:
        await exchange.send(method, b"/", HOST, body or [])
        pieces = []
        while piece := await exchange.read():
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        exchange.close()


async def test_a_connection_serves_one_exchange_after_the_other() -> None:
    num_connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        while True:
            request = await read_request(reader)
            said = request.partition(b"\r\n\r\n")[2]
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(said) + said)

    async with server_of(handler) as upstream:
        large = [b"x" * 1000] * 300
        assert await body_of(upstream, "POST", [b"one"]) == b"one"
        assert await body_of(upstream, "POST", large) == b"".join(large)
        assert await body_of(upstream, "POST") == b""
        assert num_connections == 1


async def test_chunks_arrive_whole_and_an_interim_answer_is_passed_over() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in (b"data: 1\n\n", b"data: 2\n\n"):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with server_of(handler) as upstream:
        assert await body_of(upstream) == b"data: 1\n\ndata: 2\n\n"


async def test_a_head_request_has_no_body() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        await reader.read()

    async with server_of(handler) as upstream:
        assert await asyncio.wait_for(body_of(upstream, "HEAD"), 20) == b""


async def test_a_server_stops_sending_when_nobody_reads() -> None:
    num_sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_sent
        await read_request(reader)
        writer.transport.set_write_buffer_limits(high=1024)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (512 << 20))
        for _ in range(512):
            writer.write(b"x" * (1 << 20))
            num_sent += 1
            await writer.drain()

    async with server_of(handler) as upstream:
        exchange = upstream.exchange()
        await exchange.send("GET", b"/", HOST)
        before = -1
        while num_sent != before:  # until the buffers on the way are full
            before = num_sent
            await asyncio.sleep(0.2)
        assert 0 < num_sent < 64
        held = await exchange.read()
        assert HELD_BYTES < len(held) < 4 << 20
        exchange.close()


async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    requests = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")  # and closes, without a word

    async with server_of(handler) as upstream:
        assert [await body_of(upstream) for _ in range(3)] == [b"ok"] * 3
        assert len(requests) == 3


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", b"no HTTP\r\n\r\n"])
async def test_a_server_that_goes_is_told(answer: bytes) -> None:
    num_requests = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_requests
        await read_request(reader)
        num_requests += 1
        writer.write(answer)

    async with server_of(handler) as upstream:
        with pytest.raises(UpstreamLost):
            await body_of(upstream, "POST", [b"{}"])
        assert num_requests == 1


async def test_nobody_listens() -> None:
    with pytest.raises(UpstreamLost):
        await body_of(Upstream(Address(path="/nowhere/server.sock")))


async def test_who_closes_an_exchange_ends_the_waiting_and_the_server_sees_it() -> None:
    has_left = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        has_left.set()

    async with server_of(handler) as upstream:
        exchange = upstream.exchange()
        sending = asyncio.create_task(exchange.send("POST", b"/", HOST, [b"{}"]))
        await asyncio.sleep(0.05)
        exchange.close()
        with pytest.raises(UpstreamLost):
            await sending
        await asyncio.wait_for(has_left.wait(), 20)


SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


@pytest.mark.parametrize("is_late", [False, True])
async def test_an_answer_that_nobody_asked_for_is_nobodys(is_late: bool) -> None:
    """Not a part of the one before, and not the answer to the request that comes next."""
    num_connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        await read_request(reader)
        writer.write(SHORT + b"{}")
        if is_late:
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.write(SHORT + b"[]")
        await reader.read()

    async with server_of(handler) as upstream:
        for _ in range(3):
            assert await body_of(upstream) == b"{}"
            await asyncio.sleep(0.3)
        assert num_connections == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff garbage \r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
        b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_a_lost_server(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    async with server_of(handler) as upstream:
        with pytest.raises(UpstreamLost):
            await asyncio.wait_for(body_of(upstream), 30)
    assert not caplog.records
