"""Clients that end their sending side and wait for the answer (RFC 9112, 9.6), and those that have gone, which look the same at first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sglang.srt.server.http import protocol
from tests.server.test_security_slow import LiveServer, echo, opened

GET = b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nabcde"
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


class Slow:
    """Answers when it is told to, unless the client leaves before."""

    def __init__(self, is_stream: bool = False) -> None:
        self.may_answer = asyncio.Event()
        self.left = asyncio.Event()
        self.begun = asyncio.Event()
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        self.begun.set()
        watch = asyncio.create_task(self._watch(receive))
        if self._is_stream:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not (self.may_answer.is_set() or self.left.is_set()):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0.02)
        else:
            await self.may_answer.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})
        watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


async def sent(live: LiveServer, data: bytes) -> asyncio.StreamReader:
    """What comes back to a client that sends `data` and ends its sending side."""
    reader, writer = await live.connect()
    writer.write(data)
    writer.write_eof()
    reader.writer = writer  # type: ignore[attr-defined]
    return reader


async def whole(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 20)


@pytest.mark.parametrize("data", [GET % b"", POST, CHUNKED])
async def test_the_answer_comes(data: bytes) -> None:
    async with opened(echo) as live:
        found = await whole(await sent(live, data))
        assert found.count(b"HTTP/1.1 200") == 1


async def test_a_late_answer_comes_after_probes_and_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.02)
    app = Slow()
    async with opened(app) as live:
        reader = await sent(live, POST)
        probe = await asyncio.wait_for(reader.readexactly(2 * len(protocol.PROBE)), 20)
        assert probe == 2 * protocol.PROBE
        app.may_answer.set()
        found = await whole(reader)
        head, _, body = found.replace(protocol.PROBE, b"").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and b"connection: close" in head and body == b"done"
        assert not app.left.is_set()


async def test_a_quick_answer_comes_without_probes() -> None:
    app = Slow()
    async with opened(app) as live:
        reader = await sent(live, POST)
        await app.begun.wait()
        await asyncio.sleep(0.05)
        app.may_answer.set()
        assert (await whole(reader)).startswith(b"HTTP/1.1 200")


async def test_a_stream_goes_on_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.02)
    app = Slow(is_stream=True)
    async with opened(app) as live:
        reader = await sent(live, GET % b"")
        await asyncio.wait_for(reader.readuntil(b"x"), 20)
        await asyncio.sleep(0.1)
        app.may_answer.set()
        found = await whole(reader)
        assert b"done" in found and b"100 Continue" not in found


async def test_all_requests_that_were_sent_ahead_are_answered() -> None:
    async with opened(echo) as live:
        found = await whole(await sent(live, (POST + CHUNKED) * 20 + GET % b"last"))
        assert found.count(b"HTTP/1.1 200") == 41


@pytest.mark.parametrize("data", [b"", POST[:-1], CHUNKED[:-2], b"GET / HT", POST + b"GET /"])
async def test_half_a_request_is_no_reason_to_stay(data: bytes) -> None:
    async with opened(echo) as live:
        found = await whole(await sent(live, data))
        assert found.count(b"HTTP/1.1 200") == data.startswith(POST)


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_who_has_gone_is_noticed(monkeypatch: pytest.MonkeyPatch, is_stream: bool, how: str) -> None:
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.02)
    app = Slow(is_stream)
    async with opened(app) as live:
        _, writer = await live.connect()
        writer.write(POST)
        await app.begun.wait()
        transport: Any = writer.transport
        transport.abort() if how == "abort" else transport.close()
        await asyncio.wait_for(app.left.wait(), 20)
        app.may_answer.set()
        await asyncio.sleep(0.05)
        assert live.num_open == 0


OLD = b"GET / HTTP/1.0\r\n\r\n"


@pytest.mark.parametrize("num_probes", [0, 1, 5, 9])
async def test_an_old_client_gets_one_answer_that_begins_early(monkeypatch: pytest.MonkeyPatch, num_probes: int) -> None:
    """HTTP/1.0 knows no interim answers: the probes are the first bytes of the answer, until those end that every answer has."""
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.001 if num_probes else 20.0)
    monkeypatch.setattr(protocol, "MAX_PROBE_SECONDS", 0.001)
    app = Slow()
    async with opened(app) as live:
        reader = await sent(live, OLD)
        await app.begun.wait()
        early = await asyncio.wait_for(reader.readexactly(num_probes), 20)
        if num_probes == len(protocol.EVERY_BEGINNING):
            await asyncio.sleep(0.05)
        assert not app.left.is_set()
        app.may_answer.set()
        found = early + await whole(reader)
        assert found.startswith(b"HTTP/1.1 200 OK\r\n") and found.count(b"HTTP/1.1") == 1 and found.endswith(b"\r\n\r\ndone")


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_an_old_client_that_has_gone_is_noticed(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(protocol, "PROBE_SECONDS", 0.02)
    app = Slow()
    async with opened(app) as live:
        _, writer = await live.connect()
        writer.write(OLD)
        await app.begun.wait()
        transport: Any = writer.transport
        transport.abort() if how == "abort" else transport.close()
        await asyncio.wait_for(app.left.wait(), 20)
        app.may_answer.set()
