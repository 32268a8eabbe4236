"""Streams that are not read, and answers that are larger than their questions."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from tests.attack.target import QUESTION, Scale, Target

HEAVY: dict[str, Any] = {
    "text": "x",
    "stream": True,
    "return_logprob": True,
    "top_logprobs_num": 1024,
    "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True},
}


def leave_unread(target: Target, path: str, body: dict[str, Any], seconds: float) -> socket.socket:
    """Asks for a stream and reads nothing of it."""
    data = json.dumps(body).encode()
    connection = target.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = target.head(path, "Content-Type: application/json", f"Content-Length: {len(data)}")
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


def test_unread_streams_of_every_route(text_target: Target, scale: Scale) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 1000}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 20, "n": 8}),
        ("/v1/completions", {"prompt": ["x"] * 8, "stream": True, "max_tokens": 1000, "logprobs": 5, "echo": True}),
        ("/v1/messages", {**chat}),
        ("/v1/responses", {"input": "x", "stream": True, "max_output_tokens": 1000}),
    ]
    with text_target.watched() as watch:
        held = [leave_unread(text_target, path, body, 0.1) for path, body in bodies * scale.times]
        time.sleep(scale.seconds)
        for connection in held:
            connection.close()
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
    assert _health_in_burst(text_target, 2000 if scale.times > 1 else 100) < 5000


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
