"""Many requests at the same moment: some are parsed and a few begin in each turn of the event loop, and /health does not wait for the
others."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from sglang.srt.server.http.starts import AT_ONCE, SHARE_SECONDS, TURN_SECONDS, ParseTime, Starts
from tests.server.conftest import MakeStand
from tests.server.test_security_slow import opened

NUM = 300
MAX_SECONDS = 0.05
ROUNDS = 3


class Turns:
    """Counts the turns of the running loop, and the processor time of each."""

    def __init__(self) -> None:
        self.num = 0
        self.seconds: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._before = time.thread_time()
        self._loop.call_soon(self._beat)

    def _beat(self) -> None:
        now = time.thread_time()
        self.seconds.append(now - self._before)
        self._before, self.num = now, self.num + 1
        self._handle = self._loop.call_soon(self._beat)

    def end(self) -> None:
        self._handle.cancel()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_few_begin_in_each_turn_in_order(run: Callable[..., None]) -> None:
    async def scenario() -> None:
        turns, starts = Turns(), Starts()
        begun: list[tuple[int, int]] = []
        for i in range(50):
            starts.put(lambda i=i: begun.append((turns.num, i)))  # type: ignore[misc]
        await asyncio.sleep(0.05)
        starts.put(lambda: begun.append((-1, 50)))
        turns.end()
        assert [i for _, i in begun] == list(range(51)) and begun[-1][0] == -1, "it waits for nobody: it begins at once"
        times = [turn for turn, _ in begun]
        assert all(times.count(turn) <= AT_ONCE for turn in times)

    run(scenario())


async def answers(connections: list[socket.socket]) -> list[bytes]:
    loop = asyncio.get_running_loop()
    found = []
    for connection in connections:
        connection.setblocking(False)
        found.append(await asyncio.wait_for(loop.sock_recv(connection, 4096), 60))
        connection.close()
    return found


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_parsing_has_its_time_in_each_turn_and_all_have_a_share(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only parsing moves."""
    now = 1.0
    monkeypatch.setattr("sglang.srt.server.http.starts.time.monotonic", lambda: now)
    worked: list[tuple[int, int]] = []

    async def scenario() -> None:
        turns, parsing = Turns(), ParseTime()
        left = [40, 40, 1, *([2] * 30)]
        """pieces of each connection, of half a share"""

        def parse(number: int) -> None:
            nonlocal now
            began = now
            while left[number]:
                if parsing.is_up(began):
                    return parsing.wait(lambda: parse(number))
                left[number] -= 1
                now += SHARE_SECONDS / 2
                worked.append((turns.num, number))

        for number in range(len(left)):
            parse(number)
        while any(left):
            await asyncio.sleep(0)
        turns.end()

    run(scenario())
    assert len(worked) == 40 + 40 + 1 + 60
    for turn in {turn for turn, _ in worked}:
        assert sum(SHARE_SECONDS / 2 for t, _ in worked if t == turn) <= TURN_SECONDS + SHARE_SECONDS
    assert max(i for i, (_, number) in enumerate(worked) if number > 1) < 110, "a long one keeps no short one waiting"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_health_goes_past_all_others(run: Callable[..., None]) -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        async with opened(app) as door:
            clients = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(NUM)]
            await asyncio.sleep(0.2)  # all are let in
            for i, client in enumerate(clients):
                client.sendall(get(f"/{i}" if i < NUM - 1 else "/health"))
            replies = await answers(clients)
        assert all(reply.startswith(b"HTTP/1.1 200") for reply in replies)
        assert len(begun) == NUM and begun.index("/health") <= 2 * AT_ONCE

    run(scenario())


@pytest.fixture
def quiet_garbage() -> Iterator[None]:
    """What the tests have piled up is not the server's to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


TINY_CHUNKS = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000
LONG_HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"name-%d: value\r\n" % i for i in range(250)) + b"\r\n"


@pytest.mark.attack
@pytest.mark.parametrize(
    ("num", "data"),
    [(1000, get("/x")), (500, LONG_HEAD), (50, TINY_CHUNKS + b"0\r\n\r\n")],
    ids=["heads", "long heads", "tiny chunks"],
)
def test_no_turn_of_parsing_is_long(num: int, data: bytes, quiet_garbage: None) -> None:
    """From clients without a key, at the same moment. All are answered, and one that asks for /health does not wait for them."""
    answered: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        answered.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def longest_turn() -> float:
        answered.clear()
        async with opened(app) as door:
            clients = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(num + 1)]
            await asyncio.sleep(0.3)  # all are let in
            for client in clients[:-1]:
                client.sendall(data)
            clients[-1].sendall(get("/health"))
            turns = Turns()
            replies = await answers(clients)
            turns.end()
        assert all(reply.startswith(b"HTTP/1.1 200") for reply in replies)
        assert len(answered) == num + 1 and answered.index("/health") < num / 2
        return max(turns.seconds)

    assert min(uvloop.run(longest_turn()) for _ in range(ROUNDS)) < MAX_SECONDS


def test_no_turn_of_the_loop_is_long(make_stand: MakeStand, quiet_garbage: None) -> None:
    body = json.dumps({"text": "The capital of France is", "sampling_params": {"max_new_tokens": 12}}).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )

    async def longest_turn() -> float:
        stand = make_stand()
        stand.scheduler.max_running = 32  # it shares the loop with what is measured
        async with opened(stand.app) as door:
            clients = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(NUM)]
            await asyncio.sleep(0.2)
            for client in clients:
                client.sendall(head.encode() + body)
            turns = Turns()
            replies = await answers(clients)
            turns.end()
        assert all(reply.startswith(b"HTTP/1.1 200") for reply in replies)
        return max(turns.seconds)

    assert min(uvloop.run(longest_turn()) for _ in range(ROUNDS)) < MAX_SECONDS
