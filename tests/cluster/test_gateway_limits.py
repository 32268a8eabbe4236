"""What a client can have the gateway keep: outputs of its streams and names of its sessions, within limits that leave room for others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
import weakref
from typing import Any

import pytest

from sglang.cluster import gateway, held_state, relay
from sglang.cluster.gateway import Gateway
from sglang.cluster.held_state import HeldState
from sglang.cluster.metrics import GatewayMetrics
from sglang.cluster.relay import JournalRoom, Lost, Relay
from sglang.cluster.upstream import Exchange, Head, Upstream, UpstreamLost
from sglang.srt.server.http.request_scope import RequestScope, enter_scope, leave_scope
from sglang.srt.server.limits.json_limits import Pieces
from tests.cluster.test_gateway_names import Pool

SCOPE = {"type": "http", "method": "POST", "path": "/generate", "headers": [], "query_string": b"", "client": ("127.0.0.1", 1)}


class Events:
    """An upstream whose server sends so many outputs of a size, and then is lost."""

    def __init__(self, room: JournalRoom, count: int, size: int) -> None:
        self._room, self._left, self._size = room, count, size
        self.least_left = room.left

    def exchange(self) -> Events:
        return self

    async def send(self, *_: Any) -> Head:
        return Head(200, [(b"content-type", b"text/event-stream")])

    async def read(self) -> bytes:
        self.least_left = min(self.least_left, self._room.left)
        if not self._left:
            raise UpstreamLost
        self._left -= 1
        return b": out " + b"x" * self._size + b"\n\ndata: {}\n\n"

    was_sent = True

    def close(self) -> None: ...


async def never() -> Any:
    await asyncio.Event().wait()


async def drop(message: Any) -> None: ...


@pytest.mark.parametrize(
    ("count", "size", "room", "goes_on", "held"),
    [(10, 100, 10_000, True, 1000), (10, 100, 350, False, 300), (1, 400, 350, False, 0), (30, 100, 10_000, False, 2000)],
)
async def test_outputs_are_kept_while_there_is_room(
    count: int, size: int, room: int, goes_on: bool, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_JOURNAL", 2000)
    shared = JournalRoom(room)
    upstream: Any = Events(shared, count, size)
    async with Relay(SCOPE, never, drop, b"/generate", [b"{}"], shared) as one:
        with pytest.raises(Lost) as lost:
            await one.over(upstream)
        assert lost.value.may_go_on is goes_on
        assert shared.left == room - (held if goes_on else 0)
        assert upstream.least_left == room - held
        async with Relay(SCOPE, never, drop, b"/generate", [b"{}"], shared) as other:
            with pytest.raises(Lost):
                await other.over(Events(shared, 1, 100))  # type: ignore[arg-type]
    assert shared.left == room


async def test_no_client_pushes_the_sessions_of_another_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_state, "MAX_SESSIONS", 5)
    state = HeldState(lambda: [])

    async def holder(key: str, name: str) -> str | None:
        token = enter_scope(RequestScope(time.monotonic(), key))
        try:
            return await state.holder("/generate", [], Pieces([json.dumps({"session_params": {"id": name}}).encode()]))
        finally:
            leave_scope(token)

    for key, count in (("b", 1), ("a", 100)):
        token = enter_scope(RequestScope(time.monotonic(), key))
        for i in range(count):
            state.opened(json.dumps(f"{key}{i}").encode(), f"replica of {key}")
        leave_scope(token)
    assert await holder("b", "b0") == "replica of b"
    assert await holder("a", "a99") == "replica of a" and await holder("a", "a0") is None
    assert await holder("a", "b0") is None


async def test_a_client_that_leaves_between_two_pieces_is_no_fault() -> None:
    exchange = Exchange(Upstream("/nowhere"))
    exchange.close()
    with pytest.raises(UpstreamLost):
        await exchange.read()


class Piece(bytearray):
    """One that a test can watch."""


class Answers(Events):
    """An upstream that refuses what it is sent."""

    async def send(self, *_: Any) -> Head:
        return Head(400, [])

    async def read(self) -> bytes:
        return b""


@pytest.mark.parametrize("kind", [Answers, Events])
async def test_a_request_that_has_ended_holds_no_body(kind: type[Events]) -> None:
    """Not even until the collector comes, which for few large bodies is long."""
    piece = Piece(b"x" * 1000)
    seen = weakref.ref(piece)
    upstream: Any = kind(JournalRoom(), 0, 0)
    gc.disable()
    try:
        async with Relay(SCOPE, never, drop, b"/generate", [piece]) as one:
            await asyncio.sleep(0)  # its watcher waits
            with contextlib.suppress(Lost):
                await one.over(upstream)
        del piece
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen() is None
    finally:
        gc.enable()


REFUSED = {
    "short": b"{",
    "no object": b"[" + b"1," * 50_000 + b"1]",
    "cut off": b'{"text": "' + b"x" * 100_000,
    "nested": b'{"text": ' + b"[" * 100_000,
    "a long name": b'{"model": "' + b"x" * 100_000 + b'"}',
    "a long key": b'{"' + b"x" * 100_000 + b'": 1}',
    "another model": b'{"model": "x", "text": "' + b"x" * 100_000 + b'"}',
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_body_is_forgotten(name: str) -> None:
    """As soon as its client is told."""
    piece = Piece(REFUSED[name])
    seen = weakref.ref(piece)
    pool, told = Pool(), list[int]()

    async def receive() -> Any:
        nonlocal piece
        message = {"type": "http.request", "body": piece}
        del piece
        return message

    async def note(message: Any) -> None:
        told.append(message.get("status", 0))

    gc.disable()
    try:
        scope = {**SCOPE, "headers": [(b"content-type", b"application/json")]}
        await Gateway(pool, GatewayMetrics(), page=False)(scope, receive, note)  # type: ignore[arg-type]
        for _ in range(200):  # the thread that parsed may hold it for a moment more
            if seen() is None:
                break
            await asyncio.sleep(0.01)
        assert told[0] in (400, 404) and seen() is None
    finally:
        gc.enable()


async def test_flushing_gives_back_what_bodies_took(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[bool] = []
    monkeypatch.setattr(gateway, "release_freed_memory", lambda: done.append(True))
    pool: Any = Pool()
    scope = {**SCOPE, "method": "GET", "path": "/flush_cache"}

    async def receive() -> Any:
        return {"type": "http.request"}

    await Gateway(pool, GatewayMetrics(), page=False)(scope, receive, drop)
    assert done
