"""No body keeps the gateway's event loop from other requests: the processor time of every callback, whatever the body is made of."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from sglang.cluster.gateway import Gateway
from sglang.cluster.metrics import GatewayMetrics
from sglang.srt.errors import OverloadError
from tests.cluster.test_gateway_names import Pool
from tests.server.test_loop_time import MAX_SECONDS, PIECE, ROUNDS, timed_callbacks

SIZE = 12 << 20
BODIES = {
    "keys": lambda: b"{" + b",".join(b'"%d":1' % i for i in range(SIZE // 10)) + b"}",
    "lists": lambda: b'{"metadata":[' + b"[]," * (SIZE // 3) + b"[]]}",
    "ids": lambda: b'{"input_ids":[' + b"1," * (SIZE // 2) + b"1]}",
    "text": lambda: b'{"text":"' + b"hello " * (SIZE // 6) + b'"}',
    "escapes": lambda: b'{"text":"' + b"\\u0041" * (SIZE // 6) + b'"}',
    "nested": lambda: b'{"text":' + b"[" * SIZE,
    "a name": lambda: b'{"model":"' + b"x" * SIZE + b'"}',
    "a key": lambda: b'{"' + b"x" * SIZE + b'":1}',
    "cut off": lambda: b'{"messages":[' + b'{"role":"user","content":"x"},' * (SIZE // 30),
    "no JSON": lambda: b"\xff" * SIZE,
}
PATHS = ["/generate", "/v1/responses", "/open_session", "/load_lora_adapter"]


class Full(Pool):
    """One that chooses a replica by the body, and has no room."""

    wants_key = True

    def loaded(self) -> list[Any]:
        return []

    def lease(self, *_: Any, **__: Any) -> AbstractAsyncContextManager[Any]:
        raise OverloadError("too many requests")


async def send_body(path: str, body: bytes) -> int:
    at, status = 0, 0

    async def receive() -> Any:
        nonlocal at
        at += PIECE
        await asyncio.sleep(0)
        return {"type": "http.request", "body": body[at - PIECE : at], "more_body": at < len(body)}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    head = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": head, "query_string": b"", "client": ("127.0.0.1", 1)}
    await Gateway(Full(), GatewayMetrics(), page=False)(scope, receive, send)  # type: ignore[arg-type]
    return status


@pytest.mark.parametrize("name", BODIES)
async def test_no_callback_is_long(name: str) -> None:
    body = BODIES[name]()
    for path in PATHS:
        longest: list[tuple[float, str]] = []
        while len(longest) < ROUNDS:
            found: list[tuple[float, str]] = []
            gc.collect()
            with timed_callbacks(found):
                assert 400 <= await asyncio.create_task(send_body(path, body)) <= 503
            longest.append(max(found))
            if longest[-1][0] < MAX_SECONDS:
                break
        assert min(longest)[0] < MAX_SECONDS, (path, min(longest))
