"""A real server with an API key, and clients without one or that read nothing: memory stays where it was, others are answered, and
SIGTERM ends it in time."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer, start_server

pytestmark = pytest.mark.attack

KEY = "sesame"
MB = 1 << 20
POUR_BYTES = 16 * MB
POUR_SECONDS = 6.0


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = start_server(tmp_path_factory.mktemp("connections") / "log", "--api-key", KEY)
    yield server
    server.process.kill()
    server.process.wait()


def memory(server: RunningServer) -> int:
    """Bytes of the server's own process, shared pages in proportion."""
    lines = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=2)


def ask(server: RunningServer) -> float:
    """Seconds that /health takes."""
    began = time.monotonic()
    assert httpx.get(f"{server.url}/health", timeout=30, trust_env=False).status_code == 200
    return time.monotonic() - began


def post(path: str, body: dict[str, Any], key: str = KEY) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data


CHUNKED = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
FLOODS = {
    "requests without a key": (b"", b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    "requests without a host": (b"", b"GET /x HTTP/1.1\r\n\r\n"),
    "probes": (b"", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    "posts": (b"", b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}"),
    "chunked posts": (b"", CHUNKED + b"2\r\n{}\r\n0\r\n\r\n"),
    "trailers": (CHUNKED + b"0\r\n", b"a:\r\n"),
    "chunk extensions": (CHUNKED + b"1;", b"a=b;"),
    "headers": (b"GET /x HTTP/1.1\r\n", b"a:\r\n"),
    "a url": (b"GET /", b"x" * 64),
    "blank lines": (b"", b"\r\n"),
    "a body that nobody asked for": (b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n", b"x" * 64),
    "offers to upgrade": (b"", b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    "promises of a body": (b"", b"POST /x HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 0\r\n\r\n"),
}


def flood(server: RunningServer, begin: bytes, more: bytes) -> int:
    """Sends without reading. The most memory that the server had meanwhile."""
    block = more * (16384 // len(more) + 1)
    most, sent, deadline = memory(server), 0, time.monotonic() + POUR_SECONDS
    with connect(server) as connection:
        connection.sendall(begin)
        connection.settimeout(0.1)
        while sent < POUR_BYTES and time.monotonic() < deadline:
            try:
                sent += connection.send(block)
            except TimeoutError:
                pass  # nothing more is taken
            except OSError:
                break  # refused
            most = max(most, memory(server))
        time.sleep(0.2)
        return max(most, memory(server))


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_without_a_key_takes_no_memory(guarded: RunningServer, name: str) -> None:
    ask(guarded)
    before = memory(guarded)
    grown = flood(guarded, *FLOODS[name]) - before
    print(f"grown by {grown / MB:.1f} MB")
    assert grown < 32 * MB
    assert ask(guarded) < 5


def test_heads_on_many_connections_take_no_memory(guarded: RunningServer) -> None:
    ask(guarded)
    before = memory(guarded)
    head = b"GET /x HTTP/1.1\r\nhost: x\r\n" + b"".join(b"h%d: %b\r\n" % (i, b"v" * 240) for i in range(240))
    held = []
    for _ in range(900):
        connection = connect(guarded)
        connection.sendall(head)
        held.append(connection)
    grown = memory(guarded) - before
    print(f"grown by {grown / MB:.1f} MB")
    assert grown < 192 * MB
    assert ask(guarded) < 5
    for connection in held:
        connection.close()


LOGPROBS = {"return_logprob": True, "top_logprobs_num": 1000, "logprob_start_len": 0}
LONG = {"max_new_tokens": 490, "ignore_eos": True, "temperature": 0}
UNREAD = {
    "/generate": {"text": "x", "stream": True, **LOGPROBS, "sampling_params": LONG},
    "/v1/completions": {"prompt": "x", "stream": True, "logprobs": 20, "n": 8, "max_tokens": 2000, "ignore_eos": True},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "x"}], "stream": True, "logprobs": True, "top_logprobs": 20, "n": 8,
        "max_tokens": 2000, "ignore_eos": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("path", UNREAD)
def test_streams_that_nobody_reads(guarded: RunningServer, path: str) -> None:
    ask(guarded)
    before = memory(guarded)
    held = [connect(guarded) for _ in range(4)]
    for connection in held:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post(path, UNREAD[path]))
    slowest = 0.0
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        slowest = max(slowest, ask(guarded))
        time.sleep(0.1)
    grown = memory(guarded) - before
    print(f"grown by {grown / MB:.1f} MB")
    assert grown < 200 * MB
    for connection in held:
        connection.close()
    after = ask(guarded)
    print(f"slowest /health {slowest:.3f} s, after {after:.3f} s")
    assert max(slowest, after) < 5, "others wait"


def test_a_large_reply_that_nobody_reads(guarded: RunningServer) -> None:
    ask(guarded)
    before = memory(guarded)
    with connect(guarded) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {"input_ids": [5] * 500, **LOGPROBS, "sampling_params": {"max_new_tokens": 0}}
        connection.sendall(post("/generate", body))
        connection.settimeout(60)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        time.sleep(1)
        grown = memory(guarded) - before
        print(f"grown by {grown / MB:.1f} MB")
        assert grown < 64 * MB
        ask(guarded)


def test_more_log_probabilities_than_one_may_have(guarded: RunningServer) -> None:
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": KEY}, timeout=60, trust_env=False) as client:
        body = {"input_ids": [5] * 8000, **LOGPROBS, "sampling_params": {"max_new_tokens": 1}}
        reply = client.post("/generate", json=body)
    assert reply.status_code == 400 and "top_logprobs_num" in reply.json()["error"]["message"]


def test_sigterm_during_streams_that_nobody_reads(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log", "--api-key", KEY, "--drain-seconds", "3")
    try:
        held = [connect(server) for _ in range(4)]
        for connection in held:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(post("/generate", UNREAD["/generate"]))
        time.sleep(3)
        began = time.monotonic()
        assert server.stop(signal.SIGTERM, timeout=30) == 0
        print(f"stopped after {time.monotonic() - began:.1f} s")
        for connection in held:
            connection.close()
    finally:
        server.process.kill()
        server.process.wait()
