"""Streams that are not read, and answers that are larger than their questions."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from typing import Any

import pytest

from tests.attack.target import ADMIN, KEY, QUESTION, Scale, Target

HEAVY: dict[str, Any] = {
    "text": "x",
    "stream": True,
    "return_logprob": True,
    "top_logprobs_num": 1024,
    "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True},
}


def leave_unread(target: Target, path: str, body: dict[str, Any], seconds: float, buffer: int = 4096) -> socket.socket:
    """Asks for a stream and reads nothing of it. `buffer`: bytes that the system may receive meanwhile."""
    data = json.dumps(body).encode()
    connection = target.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    key = ADMIN if path.startswith("/page") else KEY
    head = target.head(path, "Content-Type: application/json", f"Content-Length: {len(data)}", key=key)
    connection.sendall(head + data)
    time.sleep(seconds)
    return connection


def test_unread_streams_with_log_probabilities(text_target: Target, scale: Scale) -> None:
    bodies = [HEAVY, {**HEAVY, "top_logprobs_num": 100}, {**HEAVY, "text": ["a", "b", "c"], "top_logprobs_num": 20}]
    bodies.append({**HEAVY, "top_logprobs_num": 0, "token_ids_logprob": list(range(1000))})
    with text_target.watched() as watch:
        held = [leave_unread(text_target, "/generate", body, 0.1) for body in bodies * (scale.times // 4 or 1)]
        time.sleep(scale.seconds)
        for connection in held:
            connection.close()
        assert text_target.ask() == text_target.answer
    assert watch.p99_ms < 5000
    text_target.check(watch)


TOOL = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    "strict": True,
}


def streams(length: int) -> list[tuple[str, dict[str, Any]]]:
    """(path, body) for every route that has a stream, of at most `length` tokens a sequence."""
    chat = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": length}
    params = {"max_new_tokens": length, "ignore_eos": True}
    return [
        ("/generate", {"text": ["x", "y"], "stream": True, "sampling_params": {**params, "n": 2}}),
        ("/generate", {"text": "x", "stream": True, "sampling_params": {**params, "regex": "(abc |def ){900}"}}),
        ("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 20, "n": 4}),
        ("/v1/chat/completions", {**chat, "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}),
        ("/v1/completions", {"prompt": ["x"] * 4, "stream": True, "max_tokens": length, "logprobs": 5, "echo": True}),
        ("/v1/messages", {**chat}),
        ("/v1/responses", {"input": "x", "stream": True, "max_output_tokens": length}),
        ("/v1/responses", {"input": "x", "stream": True, "max_output_tokens": length, "top_logprobs": 20, "store": True}),
        ("/page/live", {}),
    ]


def test_unread_streams_of_every_route(text_target: Target, scale: Scale) -> None:
    with text_target.watched() as watch:
        held = [leave_unread(text_target, path, body, 0.1) for path, body in streams(1000) * scale.times]
        time.sleep(scale.seconds)
        for connection in held:
            connection.close()
    text_target.check(watch)


def test_streams_that_are_read_slowly(text_target: Target, scale: Scale) -> None:
    """A few bytes now and then, while others are served; then the clients go on reading to the end."""
    asked = streams(40 * scale.times)
    with text_target.watched() as watch:
        # Less than a segment of the loopback, and the system drops segments and doubles its waits: minutes, whatever the server does.
        held = [leave_unread(text_target, path, body, 0.0, 1 << 17) for path, body in asked]
        for _ in range(3 * scale.times):
            for connection in held:
                connection.settimeout(60)
                assert connection.recv(16)
            assert text_target.ask() == text_target.answer
        for connection, (path, _) in zip(held, asked, strict=True):
            assert path == "/page/live" or ends_whole(connection), path
            connection.close()
    text_target.check(watch)


def ends_whole(connection: socket.socket) -> bool:
    """Whether the last piece of a chunked answer comes."""
    connection.settimeout(120)
    seen = b""
    while piece := connection.recv(1 << 16):
        seen = (seen + piece)[-5:]
        if seen == b"0\r\n\r\n":
            return True
    return False


def test_clients_that_hang_up(text_target: Target, scale: Scale) -> None:
    """At any moment, with and without a goodbye: what they asked for ends soon, and no viewer or request is left behind."""
    rng = random.Random(0)
    with text_target.watched() as watch:
        for _ in range(3 * scale.times):
            held = [leave_unread(text_target, path, body, 0.0) for path, body in streams(1000)]
            time.sleep(rng.choice([0.0, 0.01, 0.3]))
            for connection in held:
                if rng.random() < 0.5:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if rng.random() < 0.5:
                    connection.recv(rng.choice([1, 100, 10_000]))
                connection.close()
        end = time.monotonic() + 60
        while text_target.load() and time.monotonic() < end:
            time.sleep(0.2)
        assert not text_target.load(), "requests of clients that have left still run"
    viewers = [leave_unread(text_target, "/page/live", {}, 0.0) for _ in range(16)]
    for viewer in viewers:
        viewer.settimeout(60)
        assert viewer.recv(12) == b"HTTP/1.1 200", "viewers that have left keep no place"
        viewer.close()
    text_target.check(watch)


def test_prompts_with_many_log_probabilities(text_target: Target, scale: Scale) -> None:
    body = {
        "text": "x " * 4000 * scale.times,
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 1024,
        "sampling_params": {"max_new_tokens": 1},
    }
    with text_target.watched() as watch:
        for _ in range(scale.times):
            assert text_target.post("/generate", body).status_code in (200, 400)
    text_target.check(watch)


def test_clients_that_come_and_go(text_target: Target, scale: Scale) -> None:
    """An arrival burst of honest and hasty clients; /health answers all the time."""
    assert _health_in_burst(text_target, 1000 if scale.times > 1 else 100) < 5000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_health_in_an_arrival_burst(text_target: Target) -> None:
    """For a machine that does nothing else: pytest -m slow tests/attack/test_streams.py"""
    took = min(_health_in_burst(text_target, 2000) for _ in range(3))
    assert took < 100, f"/health took {took:.0f} ms"


def _health_in_burst(target: Target, count: int) -> float:
    """The 99th percentile of /health's latency, in milliseconds."""
    data = json.dumps(QUESTION).encode()
    head = target.head("/generate", "Content-Type: application/json", f"Content-Length: {len(data)}", "Connection: close")
    with target.watched() as watch:
        threads = [threading.Thread(target=_burst, args=(target, head + data, count // 8)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    target.check(watch)
    return watch.p99_ms


def _burst(target: Target, data: bytes, count: int) -> None:
    held = []
    for i in range(count):
        connection = target.connect()
        connection.sendall(data)
        if i % 4 == 3:
            connection.close()
        else:
            held.append(connection)
    for connection in held:
        connection.settimeout(120)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503", b"HTTP/1.1 429")), answer[:200]
        connection.close()
