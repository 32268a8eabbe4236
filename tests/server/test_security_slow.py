"""Clients that are slow on purpose: each limit of http/protocol.py, made short, against the server's own HTTP stack."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from sglang.srt.config import HttpOptions
from sglang.srt.process.endpoint import listen
from sglang.srt.process.uvicorn_server import HttpServer, uvicorn_config
from sglang.srt.server.http import protocol as http_protocol

LIMIT = 0.3


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body; /flood answers without end, /early before the body has come."""
    if scope["path"] == "/early":
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2000 if scope["path"] == "/flood" else 0):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": str(size).encode()})


class LiveServer:
    """A running server; `connect` opens a connection to it."""

    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self.server = server
        self.port = port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    @property
    def num_open(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(http_protocol, name, LIMIT)
    monkeypatch.setattr(http_protocol, "BODY_RATE", 1 << 20)


@pytest.fixture
async def live(short_limits: None) -> AsyncIterator[LiveServer]:
    async with opened() as one:
        yield one


@contextlib.asynccontextmanager
async def opened(app: ASGIApp | None = None, **options: Any) -> AsyncIterator[LiveServer]:
    listener = listen("127.0.0.1", 0)
    server = HttpServer(uvicorn_config(app or echo, HttpOptions(log_level="error", **options)))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield LiveServer(server, listener.getsockname()[1])
    server.should_exit = True
    await serving


async def answer(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 10)


async def test_a_connection_that_says_nothing_is_closed(live: LiveServer) -> None:
    reader, writer = await live.connect()
    assert await answer(reader) == b""
    writer.close()


async def test_a_head_that_never_ends_is_a_408(live: LiveServer) -> None:
    reader, writer = await live.connect()

    async def drip() -> None:
        for byte in b"GET / HTTP/1":  # none may be on its way when the connection closes, or the answer is lost
            writer.write(bytes([byte]))
            await asyncio.sleep(LIMIT / 20)

    dripping = asyncio.create_task(drip())
    assert (await answer(reader)).startswith(b"HTTP/1.1 408")
    dripping.cancel()
    writer.close()


@pytest.mark.parametrize("begin", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n"])
def test_what_came_while_the_server_was_busy_is_not_late(short_limits: None, begin: bytes) -> None:
    """On uvloop, whose timers come before what there is to read when a turn began with reading and took long."""
    whole = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"

    async def scenario() -> bytes:
        async with opened() as live:
            loop = asyncio.get_running_loop()
            ours, theirs = socket.socketpair()
            with socket.create_connection(("127.0.0.1", live.port)) as client, ours, theirs:
                client.sendall(begin)
                await asyncio.sleep(0.05)

                def busy() -> None:
                    loop.remove_reader(ours.fileno())
                    client.sendall(whole[len(begin) :])
                    time.sleep(LIMIT * 2)

                loop.add_reader(ours.fileno(), busy)
                theirs.send(b"x")
                client.setblocking(False)
                found = b""
                while not found.endswith(b"0\r\n\r\n"):
                    piece = await asyncio.wait_for(loop.sock_recv(client, 4096), 10)
                    assert piece, found
                    found += piece
                return found

    assert uvloop.run(scenario()).startswith(b"HTTP/1.1 200")


async def test_a_second_head_has_its_own_time(live: LiveServer) -> None:
    reader, writer = await live.connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"0\r\n\r\n")
    await asyncio.sleep(LIMIT * 2)
    assert live.num_open == 1, "keep-alive has its own limit"
    writer.write(b"GET / HT")
    assert b"HTTP/1.1 408" in await answer(reader)
    writer.close()


async def test_a_body_that_stalls_is_a_408(live: LiveServer) -> None:
    reader, writer = await live.connect()
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
    assert (await answer(reader)).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_a_body_that_comes_steadily_may_take_long(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_RATE", 1000)
    reader, writer = await live.connect()
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000\r\n\r\n")
    began = time.monotonic()
    while time.monotonic() - began < 3 * LIMIT:
        writer.write(b"x" * 400)
        await asyncio.sleep(LIMIT / 4)
    writer.write(b"x" * 4000)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_client_that_does_not_read_is_cut_off(live: LiveServer) -> None:
    reader, writer = await live.connect()
    writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readline()
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while live.num_open:
        assert time.monotonic() < deadline, "it is still connected"
        await asyncio.sleep(0.05)
    writer.close()


async def test_heads_at_the_limit(live: LiveServer) -> None:
    async def status(size: int) -> bytes:
        reader, writer = await live.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"a" * size + b"\r\n\r\n")
        line = (await answer(reader))[:12]
        writer.close()
        return line

    assert await status(http_protocol.HEAD_BYTES - 200) == b"HTTP/1.1 200"
    assert await status(http_protocol.HEAD_BYTES) == b"HTTP/1.1 431"


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nhost: x\r\nx: ", b"GET / HTTP/1.1\r\nhost: x\r\nx"])
async def test_an_unfinished_head_does_not_fill_memory(live: LiveServer, begin: bytes) -> None:
    """A target, a value and a name that never end: the server answers soon after the limit, however much comes."""
    reader, writer = await live.connect()
    writer.write(begin)
    answering = asyncio.create_task(answer(reader))
    sent = 0
    with contextlib.suppress(OSError):
        while not answering.done() and sent < 100 * http_protocol.HEAD_BYTES:
            writer.write(b"a" * 4096)
            sent += 4096
            await writer.drain()
            await asyncio.sleep(0)
    assert sent < 100 * http_protocol.HEAD_BYTES
    with contextlib.suppress(ConnectionError):  # it closes with bytes unread, which may reset the connection
        assert (await answering)[:12] == b"HTTP/1.1 431"
    writer.close()
