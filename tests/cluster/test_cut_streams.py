"""The connection to a server cut at every output of a stream: the client gets what it gets without, to the byte but for times."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang.cluster import relay as relay_module
from sglang.cluster.relay import Lost, Relay
from sglang.cluster.upstream import Address, Upstream
from sglang.common.server_process import end_process
from tests.cluster.conftest import CHAT, SEED
from tests.conftest import RunningServer, start_server

pytestmark = pytest.mark.cluster

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"]},
    },
}
LIST = json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 6, "maxItems": 8})
USAGE = {"stream_options": {"include_usage": True}}
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("/generate", {"text": "a b", "sampling_params": {"max_new_tokens": 25, "temperature": 0, "ignore_eos": True}}),
    "sampled, no seed": ("/generate", {"text": "a b", "sampling_params": {"max_new_tokens": 25, "ignore_eos": True}}),
    "log probabilities": (
        "/generate",
        {
            **{"text": "a b c", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 3},
            "sampling_params": {"max_new_tokens": 15, "seed": 5, "ignore_eos": True},
        },
    ),
    "a grammar": ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 60, "json_schema": LIST, "seed": 2}}),
    "stop strings": (
        "/v1/completions",
        {"prompt": ["a", "b c"], "max_tokens": 20, "seed": 1, "stop": ["qqqq", "e t", "\n\n"], **USAGE},
    ),
    "chat": ("/v1/chat/completions", CHAT | {"max_tokens": 25, **USAGE}),
    "tools": ("/v1/chat/completions", CHAT | {"max_tokens": 60, "tools": [WEATHER], "tool_choice": "required", **USAGE}),
    "n": ("/v1/chat/completions", CHAT | {"max_tokens": 8, "seed": 4, "n": 3, "logprobs": True, "top_logprobs": 2, **USAGE}),
    "responses": ("/v1/responses", {"input": "a b c", "max_output_tokens": 15}),
    "messages": ("/v1/messages", CHAT | {"max_tokens": 60, "tools": [{"name": "w", "input_schema": {"type": "object"}}]}),
}
UNEQUAL = ("e2e_latency", "ttft", "queue_time", "completed_at", "sequence_number", "spec_")
"""times, and what depends on which tokens came in one event"""
PIECES = ("content", "arguments", "delta", "partial_json", "reasoning_content", "thinking", "text")


def told(body: bytes) -> dict[str, Any]:
    """All that a stream says: pieces of text and log probabilities joined, of all else what was said last."""
    found: dict[str, Any] = {}

    def take(path: str, value: Any) -> None:
        name = path.rpartition(".")[2]
        if name.startswith(UNEQUAL):
            return
        if isinstance(value, dict):
            place = f"#{value['index']}" if "index" in value else ""
            for key, item in value.items():
                take(f"{path}{place}.{key}", item)
        elif isinstance(value, list) and "choices" not in path and "meta_info" not in path:
            found[path] = value
        elif isinstance(value, list) and (name == "choices" or "tool_calls" in name):
            for item in value:
                take(path, item)
        elif isinstance(value, list) and "choices" in path:
            found[path] = found.get(path, []) + value
        elif isinstance(value, str) and name in PIECES and path != ".text":
            found[path] = found.get(path, "") + value
        elif value is not None:
            found[path] = value

    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            assert "error" not in event and event.get("type") != "error", event
            take(f"{event.get('type', '')}{event.get('output_index', '')}{event.get('index', '')}", event)
    found["end"] = body[-14:]
    return found


@pytest.fixture(scope="module")
def server(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("cut") / "log"
    running = start_server(log, "--served-model-name", "alpha", "--behind-gateway", *SEED, model=str(models["alpha"]))
    yield running
    end_process(running.process, 30)


class CuttingProxy:
    """In front of a server: cuts each connection after the next number of outputs in `cuts`; when there are none left, no more."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._port = port
        self.cuts = cuts
        self.num_outputs = 0
        self._tasks: list[asyncio.Task[Any]] = []

    @contextlib.asynccontextmanager
    async def upstream(self) -> AsyncIterator[Upstream]:
        serving = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        upstream = Upstream(Address(host="127.0.0.1", port=serving.sockets[0].getsockname()[1]))
        try:
            yield upstream
        finally:
            upstream.close()
            serving.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        with contextlib.suppress(asyncio.CancelledError):
            await self._relay(reader, writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        copying = asyncio.create_task(self._copy(reader, requests))
        self._tasks.append(copying)
        left = self.cuts.pop(0) if self.cuts else None
        with contextlib.suppress(ConnectionError):
            while data := await answers.read(1 << 16):
                for part in re.split(rb"(?=: out )", data):
                    self.num_outputs += part.startswith(b": out ")
                    if left is not None and part.startswith(b": out "):
                        left -= 1
                        if left < 0:
                            await writer.drain()
                            writer.transport.abort()
                            requests.transport.abort()
                            return
                    writer.write(part)
                await writer.drain()
        copying.cancel()
        writer.close()
        requests.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()


async def answer(port: int, path: str, body: dict[str, Any], cuts: list[int]) -> tuple[dict[str, Any], int, int]:
    """What the answer says, how often it was continued, and the number of outputs."""
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "client": ("127.0.0.1", 1)}
    scope["headers"] = [(b"content-type", b"application/json")]

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    proxy = CuttingProxy(port, cuts)
    async with proxy.upstream() as upstream:
        data = json.dumps(body | {"stream": True}).encode()
        async with Relay(scope, receive, send, path.encode(), [data]) as relay:
            while True:
                try:
                    assert await relay.over(upstream) == 200
                    break
                except Lost as lost:
                    assert lost.may_go_on
    assert [m["type"] for m in sent].count("http.response.start") == 1
    body_bytes = b"".join(m.get("body", b"") for m in sent)
    assert b": out" not in body_bytes
    return told(body_bytes), relay.num_resumed, proxy.num_outputs


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_cut_at_every_output(server: RunningServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "token_hex", lambda _: f"{len(name):032x}")
    monkeypatch.setattr(relay_module.time, "time", lambda: 1234567890.0)
    port = int(server.url.rpartition(":")[2])
    path, body = STREAMS[name]
    await answer(port, path, body, [])  # the prompt is cached from here on
    expected, _, num_outputs = await answer(port, path, body, [])
    assert num_outputs >= 4 and len(expected) > 4, expected
    for cut in range(num_outputs + 1):
        found, num_resumed, _ = await answer(port, path, body, [cut])
        assert found == expected, (cut, num_resumed)
    found, num_resumed, _ = await answer(port, path, body, [0, 2, 3, 3, 1])
    assert found == expected
    assert num_resumed >= 2


async def test_outputs_that_are_none_are_refused(server: RunningServer) -> None:
    upstream = Upstream(Address(host="127.0.0.1", port=int(server.url.rpartition(":")[2])))
    for lines in (b"x" * 10, b"!" * 40, b"gA==\ngA==", b"\n"):
        headers = [(b"x-sglang-journal", b"%032x 5 %d" % (7, len(lines))), (b"content-type", b"application/json")]
        exchange = upstream.exchange()
        head = await exchange.send("POST", b"/generate", [(b"host", b"localhost"), *headers], [lines, b'{"text": "a"}'])
        assert head.status == 400 and b"no outputs of a server" in await exchange.read()
        exchange.close()
    upstream.close()
