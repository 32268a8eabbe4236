"""Bytes that a connection sends before, beside and after the bodies of its requests, against the server's own HTTP stack: all of it is
counted, and none of it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.types import Receive, Scope, Send

from sglang.srt.server.http import connections
from sglang.srt.server.http import protocol as http_protocol
from sglang.srt.server.http.connections import Connections
from tests.server.test_security_slow import LiveServer, answer, opened

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    async with opened() as one:
        yield one


async def pour(live: LiveServer, begin: bytes, more: bytes, limit: int) -> int:
    """Sends `begin`, then `more` without end and reads nothing. How many bytes went before the server took no more of it."""
    _, writer = await live.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    sent, block = 0, more * (65536 // len(more) + 1)
    try:
        writer.write(begin)
        while sent < limit:
            writer.write(block)
            await asyncio.wait_for(writer.drain(), 2)
            sent += len(block)
    except (OSError, asyncio.TimeoutError):
        pass
    writer.transport.abort()
    return sent


def first_bytes(port: int, data: bytes) -> bytes:
    """What comes back first, though the connection may be closed before all was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
        return connection.recv(4096)


# --- one request after the other ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [b"GET /x HTTP/1.1\r\n\r\n", GET, b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab", CHUNKED + b"0\r\n\r\n"]
)
async def test_requests_that_are_sent_ahead_wait_in_the_socket(live: LiveServer, request_: bytes) -> None:
    sent = await pour(live, b"", request_, 64 << 20)
    assert sent < 24 << 20, "what the sockets hold, and no more"


@pytest.mark.parametrize("request_", [GET, CHUNKED + b"2\r\nab\r\n0\r\n\r\n"])
async def test_requests_that_were_sent_ahead_are_not_requests_yet(live: LiveServer, request_: bytes) -> None:
    reader, writer = await live.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n" + request_ * 5000)
    await asyncio.sleep(0.3)
    (one,) = live.server.server_state.connections
    assert len(one.pipeline) == 0  # type: ignore[union-attr]
    assert len(live.server.server_state.tasks) == 1
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    found = await asyncio.wait_for(reader.read(), 60)
    assert found.count(b"HTTP/1.1 200") == 5002, "each is answered in the end"


def requests_of(rng: random.Random) -> tuple[bytes, list[int]]:
    """Requests of all framings after each other, and the lengths of their bodies."""
    data, sizes = b"", []
    for _ in range(rng.randint(2, 9)):
        kind, size = rng.choice(["get", "length", "chunked", "upgrade", "blank"]), rng.choice([0, 1, 700, 5000])
        body = rng.choice([b"x", b"\r\n", b"GET / HTTP/1.1\r\n\r\n"]) * size
        body, upgrade = body[:size], b"connection: upgrade\r\nupgrade: h2c\r\n" if kind == "upgrade" else b""
        if kind in ("get", "blank"):
            data += b"\r\n\r\n" * (kind == "blank") + GET
            sizes.append(0)
        elif kind == "chunked":
            cuts = [body[i : i + 300] for i in range(0, len(body), 300)]
            chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(c), c) for c in cuts)
            data += CHUNKED + chunks + b"0\r\ntrailer: x\r\n\r\n"
            sizes.append(len(body))
        else:
            data += b"POST / HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (upgrade, len(body), body)
            sizes.append(len(body))
    return data, sizes


@pytest.mark.parametrize("seed", range(20))
async def test_however_requests_are_cut_each_gets_its_answer(live: LiveServer, seed: int) -> None:
    rng = random.Random(seed)
    data, sizes = requests_of(rng)
    data += b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    reader, writer = await live.connect()
    at = 0
    while at < len(data):
        size = rng.choice([1, 2, 3, 17, 600, 5000])
        writer.write(data[at : at + size])
        at += size
        if rng.random() < 0.3:
            await asyncio.sleep(0.001)
    bodies = [int(found) for found in re.findall(rb"\r\n\r\n[0-9a-f]+\r\n(\d+)\r\n0\r\n", await answer(reader))]
    assert bodies == [*sizes, 0]
    writer.close()


async def test_a_body_after_an_offer_to_upgrade_is_read(live: LiveServer) -> None:
    """As Java's client sends it."""
    reader, writer = await live.connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    writer.write(head + b"content-length: 5\r\n\r\nabcde" + GET.replace(b"host", b"connection: close\r\nhost"))
    found = await answer(reader)
    assert found.count(b"HTTP/1.1 200") == 2 and b"1\r\n5\r\n" in found


# --- beside the body ----------------------------------------------------------------------------------------------------------

ENDLESS = {
    "trailers": (CHUNKED + b"0\r\n", b"a:\r\n"),
    "a trailer's name": (CHUNKED + b"0\r\n", b"aaaaaaaa"),
    "a trailer's value": (CHUNKED + b"0\r\na: ", b"aaaaaaaa"),
    "extensions": (CHUNKED + b"1;", b"a=b;"),
    "zeros before a size": (CHUNKED, b"00000000"),
    "tiny chunks with extensions": (CHUNKED, b"1;" + b"e" * 500 + b"\r\nx\r\n"),
    "blank lines": (b"", b"\r\n"),
    "a method": (b"", b"GETGETGE"),
    "a path": (b"GET /", b"aaaaaaaa"),
    "headers": (b"GET / HTTP/1.1\r\n", b"a:\r\n"),
    "a header": (b"GET / HTTP/1.1\r\na: ", b"aaaaaaaa"),
    "empty folds": (b"GET / HTTP/1.1\r\na: b\r\n", b" \r\n"),
    "after a request": (GET, b"\r\n"),
    "an unwanted body": (b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n", b"x" * 1000),
    "unwanted chunks": (CHUNKED.replace(b"/ ", b"/early "), b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_never_ends_is_cut_off(live: LiveServer, name: str) -> None:
    begin, more = ENDLESS[name]
    sent = await pour(live, begin, more, 64 << 20)
    assert sent < 24 << 20, "it was read for ever"
    for _ in range(500):
        if not live.num_open:
            break
        await asyncio.sleep(0.01)
    assert not live.num_open


@pytest.mark.parametrize("name", ["trailers", "extensions", "headers", "a header", "tiny chunks with extensions"])
async def test_what_is_too_much_gets_an_answer(live: LiveServer, name: str) -> None:
    begin, more = ENDLESS[name]
    found = await asyncio.to_thread(first_bytes, live.port, begin + more * (200_000 // len(more)))
    assert found.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("step", [1 << 20, 5000])
@pytest.mark.parametrize("place", ["path", "value", "name"])
async def test_a_head_has_64_kib_to_the_byte(live: LiveServer, place: str, step: int) -> None:
    for size, status in ((64 * 1024, b"200"), (64 * 1024 + 1, b"431")):
        rest = b"host: x\r\nconnection: close\r\n\r\n"
        begin, end = {
            "path": (b"GET /", b" HTTP/1.1\r\n" + rest),
            "value": (b"GET / HTTP/1.1\r\na: ", b"\r\n" + rest),
            "name": (b"GET / HTTP/1.1\r\n", b": a\r\n" + rest),
        }[place]
        data = begin + b"a" * (size - len(begin) - len(end)) + end
        reader, writer = await live.connect()
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()
        assert (await answer(reader)).startswith(b"HTTP/1.1 " + status)
        writer.close()


async def test_trailers_do_not_change_a_head_that_was_judged() -> None:
    seen: list[Scope] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async with opened(note) as live:
        reader, writer = await live.connect()
        writer.write(CHUNKED + b"1\r\nx\r\n0\r\nauthorization: Bearer admin\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert [name for name, _ in seen[0]["headers"]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize("digits", [b"9" * 30, b"0" * 5001, b"0" * 5000 + b"5", b"-1", b"1_0", b" "])
async def test_lengths_that_are_none(live: LiveServer, digits: bytes) -> None:
    reader, writer = await live.connect()
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: " + digits + b"\r\n\r\nhello")
    assert (await answer(reader)).startswith(b"HTTP/1.1 400")
    writer.close()


@pytest.mark.parametrize(
    "line",
    [b"CONNECT a:1 HTTP/1.1", b"GET http:// HTTP/1.1", b"GET * HTTP/1.1", b"PRI * HTTP/2.0", b"GET /\xff\xfe HTTP/1.1", b"\0"],
)
async def test_strange_request_lines_are_answered(live: LiveServer, line: bytes) -> None:
    reader, writer = await live.connect()
    writer.write(line + b"\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await answer(reader)).startswith((b"HTTP/1.1 400", b"HTTP/1.1 200"))
    writer.close()


# --- all connections together -------------------------------------------------------------------------------------------------


async def test_connections_that_say_nothing_make_room() -> None:
    async with opened(max_connections=10) as live:
        held = [await live.connect() for _ in range(10)]
        for _, writer in held[:5]:
            writer.write(b"GET / HT")
        await asyncio.sleep(0.05)
        for _ in range(3):
            reader, writer = await live.connect()
            writer.write(GET.replace(b"host", b"connection: close\r\nhost"))
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        for _, writer in held:
            writer.close()


async def test_there_may_be_too_many_connections_at_work() -> None:
    async with opened(max_connections=4) as live:
        held = [await live.connect() for _ in range(4)]
        for _, writer in held:
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
        await asyncio.sleep(0.1)
        reader, writer = await live.connect()
        assert (await answer(reader)).startswith(b"HTTP/1.1 503")
        for reader, writer in held:
            writer.write(b"0123456789")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()


class Held:
    def __init__(self) -> None:
        self.is_cut = False

    def cut_off(self) -> None:
        self.is_cut = True


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    monkeypatch.setattr(connections, "MAX_HELD_BYTES", 1000)
    yield Connections(100)


def test_who_rested_longest_is_closed_first(small: Connections) -> None:
    ones = [Held() for _ in range(5)]
    for one in ones:
        assert small.enter(one)
        small.rest(one)
    small.work(ones[0])
    for one in ones:
        small.hold(one, 300)
    assert [one.is_cut for one in ones] == [False, True, True, False, False]
    small.hold(ones[0], 0)
    small.hold(ones[3], 400)
    assert not ones[3].is_cut and len(small) == 3


def test_one_that_holds_too_much_by_itself_is_closed(small: Connections) -> None:
    one = Held()
    small.enter(one)
    small.hold(one, 2000)
    assert one.is_cut and len(small) == 0
    small.leave(one)
    small.hold(one, 5)
    assert len(small) == 0


# --- answers that nobody takes ------------------------------------------------------------------------------------------------


async def test_a_reader_that_is_slow_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than WRITE_SECONDS for one large answer, and takes some of it all the time."""
    monkeypatch.setattr(http_protocol, "WRITE_SECONDS", 1.5)
    total = 64 << 20

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"x" * total})

    def read(port: int) -> int:
        size = 0
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(GET)
            while piece := connection.recv(1 << 20):
                size += len(piece)
                time.sleep(0.03)
        return size

    async with opened(large) as live:
        assert await asyncio.to_thread(read, live.port) > total


async def test_a_closing_connection_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last answer is too small to fill the buffer that is watched, and yet nobody takes it."""
    monkeypatch.setattr(http_protocol, "WRITE_SECONDS", 0.3)

    async def fill(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        while True:
            (one,) = state.connections
            if one.transport.get_write_buffer_size():  # type: ignore[union-attr]
                break
            await send({"type": "http.response.body", "body": b"x" * 16384, "more_body": True})
        await send({"type": "http.response.body"})

    async with opened(fill) as live:
        state = live.server.server_state
        _, writer = await live.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if state.total_requests and not live.num_open:
                break
        assert not live.num_open
        writer.transport.abort()
