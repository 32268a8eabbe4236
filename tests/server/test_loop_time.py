"""No request keeps the event loop from the others: the processor time of every callback, over all routes, with bodies that are long in
every way. Processor time, not time: a busy machine makes no callback longer."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from sglang.srt.config import BatchOptions
from sglang.srt.server.http.app import create_app
from sglang.srt.server.openai.batches.batch_runner import BatchRunner
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of
from tests.server.long_values import ROUTES

pytestmark = pytest.mark.attack

MAX_SECONDS = 0.05
ROUNDS = 6
"""the best of so many counts: the first use of anything is slower, and garbage is collected in somebody's callback"""
PIECE = 64 << 10


@contextmanager
def timed_callbacks(found: list[tuple[float, str]]) -> Iterator[None]:
    """Notes the processor time of each callback of every event loop."""
    plain = asyncio.Handle._run

    def run(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        plain(handle)
        found.append((time.thread_time() - began, repr(handle)[:200]))

    asyncio.Handle._run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        asyncio.Handle._run = plain  # type: ignore[method-assign]


async def post(stand: Stand, path: str, body: bytes, kind: bytes = b"application/json") -> tuple[int, int]:
    """Status and length of the answer. The body comes in pieces, as from a socket."""
    view, at, done = memoryview(body), 0, asyncio.Event()
    status = size = 0

    async def receive() -> Message:
        nonlocal at
        if at and at >= len(view):
            await done.wait()
            return {"type": "http.disconnect"}
        piece = bytes(view[at : at + PIECE])
        at += PIECE
        await asyncio.sleep(0)
        return {"type": "http.request", "body": piece, "more_body": at < len(view)}

    async def send(message: Message) -> None:
        nonlocal status, size
        status = message.get("status", status)
        size += len(message.get("body", b""))

    head = [(b"host", b"localhost"), (b"content-type", kind), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": head, "http_version": "1.1"}
    await stand.app(scope | {"scheme": "http", "server": ("localhost", 1), "client": ("y", 2), "root_path": ""}, receive, send)
    done.set()
    return status, size


LONG = 100_000
PICTURE = base64.b64encode(b"x" * 3_000_000).decode()


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1}


def one() -> dict[str, Any]:
    return {"max_new_tokens": 1}


TOOL = {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "d" * 20} for i in range(20)}}
SHAPES: dict[str, tuple[str, Any]] = {
    "text": ("/generate", lambda: {"text": "word " * LONG, "sampling_params": one()}),
    "texts": ("/generate", lambda: {"text": ["a b c"] * 9000, "sampling_params": one()}),
    "samplings": ("/generate", lambda: {"text": ["a"] * 4000, "sampling_params": [one()] * 4000}),
    "ids": ("/generate", lambda: {"input_ids": [300] * 1_500_000, "sampling_params": one()}),
    "rows of ids": ("/generate", lambda: {"input_ids": [[7] * 100] * 9000, "sampling_params": one()}),
    "short rows": ("/generate", lambda: {"input_ids": [[7]] * 9000, "sampling_params": one()}),
    "logit bias": ("/generate", lambda: {"text": "a", "sampling_params": one() | {"logit_bias": {str(i): 1.0 for i in range(100_000)}}}),
    "stops": ("/generate", lambda: {"text": "a", "sampling_params": one() | {"stop": ["ab" * 50] * 64}}),
    "samples": ("/generate", lambda: {"text": "a", "sampling_params": one() | {"n": 128}}),
    "pictures": ("/generate", lambda: {"text": "a", "image_data": [PICTURE] * 4, "sampling_params": one()}),
    "chat text": ("/v1/chat/completions", lambda: user("word " * LONG)),
    "chat special text": ("/v1/chat/completions", lambda: user("<|im_end|> " * 20_000)),
    "messages": ("/v1/chat/completions", lambda: {"messages": [{"role": "user", "content": "a"}] * 40_000, "max_tokens": 1}),
    "parts": ("/v1/chat/completions", lambda: user([{"type": "text", "text": "a"}] * 40_000)),
    "picture parts": ("/v1/chat/completions", lambda: user([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}}] * 4)),
    "tools": (
        "/v1/chat/completions",
        lambda: user("a") | {"tools": [{"type": "function", "function": {"name": f"f{i}", "parameters": TOOL}} for i in range(400)]},
    ),
    "calls": (
        "/v1/chat/completions",
        lambda: {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(9000)]},
                *({"role": "tool", "tool_call_id": f"c{i}", "content": "a"} for i in range(9000)),
            ],
            "max_tokens": 1,
        },
    ),
    "template variables": ("/v1/chat/completions", lambda: user("a") | {"chat_template_kwargs": {"a": [{}] * 100_000}}),
    "ignored": ("/v1/chat/completions", lambda: user("a") | {"metadata": {"a": "x" * 20_000_000}}),
    "unknown": ("/v1/chat/completions", lambda: user("a") | {"x" * 20_000_000: 1}),
    "prompts": ("/v1/completions", lambda: {"prompt": ["a b"] * 9000, "max_tokens": 1}),
    "prompts of ids": ("/v1/completions", lambda: {"prompt": [[300] * 200] * 5000, "max_tokens": 1}),
    "echo": ("/v1/completions", lambda: {"prompt": "word " * 100, "max_tokens": 1, "echo": True, "n": 100, "best_of": 100}),
    "items": ("/v1/responses", lambda: {"input": [{"role": "user", "content": "a"}] * 40_000, "max_output_tokens": 1}),
    "function calls": (
        "/v1/responses",
        lambda: {"input": [{"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}] * 30_000, "max_output_tokens": 1},
    ),
    "response text": ("/v1/responses", lambda: {"input": "word " * LONG, "max_output_tokens": 1}),
    "blocks": (
        "/v1/messages",
        lambda: {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 40_000}], "max_tokens": 1},
    ),
    "block text": ("/v1/messages/count_tokens", lambda: {"messages": [{"role": "user", "content": "word " * LONG}]}),
    "tokenize": ("/tokenize", lambda: {"text": "word " * LONG}),
    "tokenize many": ("/tokenize", lambda: {"text": ["a"] * 16_000}),
    "detokenize": ("/detokenize", lambda: {"tokens": [300] * 500_000}),
    "detokenize many": ("/detokenize", lambda: {"tokens": [[300]] * 16_000}),
    "choices": ("/score_choices", lambda: {"text": "word " * 20, "choices": ["a b"] * 4000}),
    "scores": ("/v1/score", lambda: {"query": "word " * 20, "items": ["a"] * 4000, "label_token_ids": [1, 2]}),
    "embeddings": ("/v1/embeddings", lambda: {"input": ["word"] * 8000}),
    "embeddings of ids": ("/v1/embeddings", lambda: {"input": [[300] * 200] * 4000}),
    "encode": ("/encode", lambda: {"text": ["word " * 30] * 4000}),
    "rerank": ("/v1/rerank", lambda: {"query": "a", "documents": ["word " * 30] * 4000}),
    "call text": (
        "/parse_function_call",
        lambda: {
            "text": '{"a":' * 20_000,
            "tool_call_parser": "generic",
            "tools": [{"type": "function", "function": {"name": "f", "parameters": TOOL}}],
        },
    ),
    "reasoning": ("/separate_reasoning", lambda: {"text": "<think>" + " " * 190_000, "reasoning_parser": "generic"}),
    "brackets": ("/generate", lambda: {"text": "a", "custom_logit_processor": [[]] * 300_000}),
}  # fmt: skip
EMBEDS = ("/v1/embeddings", "/encode", "/v1/rerank")
LARGEST: dict[str, tuple[str, Callable[[], bytes]]] = {
    "text": ("/generate", lambda: b'{"text":"' + b"word " * 12_000_000 + b'"}'),
    "texts": ("/generate", lambda: b'{"text":[' + b'"%b",' % (b"word " * 1200) * 9000 + b'"a"]}'),
    "ids": ("/generate", lambda: b'{"input_ids":[' + b"300," * 15_000_000 + b"1]}"),
    "rows of ids": ("/v1/completions", lambda: b'{"max_tokens":1,"prompt":[' + b"[%b1]," % (b"300," * 1600) * 9000 + b"[1]]}"),
    "ignored": ("/v1/chat/completions", lambda: b'{"messages":[],"metadata":{"a":"' + b"x" * 60_000_000 + b'"}}'),
    "ignored values": ("/v1/chat/completions", lambda: b'{"messages":[],"metadata":[' + b"[]," * 20_000_000 + b"1]}"),
    "unknown": ("/v1/chat/completions", lambda: b'{"messages":[],"' + b"x" * 60_000_000 + b'":1}'),
    "tokenize": ("/tokenize", lambda: b'{"text":"' + b"word " * 12_000_000 + b'"}'),
    "embeddings": ("/v1/embeddings", lambda: b'{"input":[' + b'"%b",' % (b"word " * 1200) * 9000 + b'"a"]}'),
    "rerank": ("/v1/rerank", lambda: b'{"query":"a","documents":[' + b'"%b",' % (b"word " * 1200) * 9000 + b'"a"]}'),
}  # fmt: skip
"""as large as a body may be"""


@pytest.mark.parametrize("name", SHAPES)
async def test_no_callback_is_long(make_stand: MakeStand, name: str) -> None:
    path, make = SHAPES[name]
    await check_callbacks(make_stand, path, json.dumps(make()).encode())


@pytest.mark.parametrize("name", LARGEST)
async def test_no_callback_is_long_for_the_largest_bodies(make_stand: MakeStand, name: str) -> None:
    path, make = LARGEST[name]
    await check_callbacks(make_stand, path, make())


# --- files and batches ------------------------------------------------------------------------------------------------------------

FORM = b"multipart/form-data; boundary=q"
PART = b'--q\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
BATCH = b'{"input_file_id":"file-0123456789abcdef01234567","endpoint":"/v1/chat/completions","completion_window":"24h",'


def upload(content: bytes) -> bytes:
    return PART % (b"purpose", b"", b"batch") + PART % (b"file", b"; filename=a", content) + b"--q--"


STORED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a file": ("/v1/files", lambda: upload(b"x" * 30_000_000)),
    "line ends": ("/v1/files", lambda: upload(b"\r\n" * 10_000_000)),
    "nearly boundaries": ("/v1/files", lambda: upload(b"\r\n--" * 5_000_000)),
    "parts": ("/v1/files", lambda: (PART % (b"file", b"; filename=a", b"")) * 100_000),
    "a long field": ("/v1/files", lambda: PART % (b"purpose", b"", b"x" * 20_000_000)),
    "a long head": ("/v1/files", lambda: b"--q\r\n" + b"X: y\r\n" * 1_000_000),
    "long texts": ("/v1/batches", lambda: BATCH + b'"metadata":{"a":"' + b"x" * 20_000_000 + b'"}}'),
    "names": ("/v1/batches", lambda: BATCH + b'"metadata":{' + b",".join(b'"%07d":"a"' % i for i in range(350_000)) + b"}}"),
    "a long id": ("/v1/batches", lambda: b'{"endpoint":"a","completion_window":"1h","input_file_id":"' + b"x" * 20_000_000 + b'"}'),
    "a long window": ("/v1/batches", lambda: b'{"endpoint":"/v1/score","input_file_id":"x","completion_window":"' + b"9" * 20_000_000 + b'"}'),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
async def test_no_callback_is_long_for_files_and_batches(make_stand: MakeStand, tmp_path: Path, name: str) -> None:
    path, make = STORED[name]
    runner = BatchRunner(BatchOptions(str(tmp_path / "batches")))

    def make_with_batches(**options: Any) -> Stand:
        stand = make_stand(**options)
        stand.app = create_app(stand.manager, stand.options, {}, runner)
        return stand

    try:
        await check_callbacks(make_with_batches, path, make(), FORM if path == "/v1/files" else b"application/json")
    finally:
        runner.close()


async def test_all_routes_with_a_body_are_here(stand: Stand) -> None:
    """Those that long_values.py fills, and those above; two names of one route once."""
    async with client_of(stand) as client:
        document = (await client.get("/openapi.json")).json()
    read = {path for path, methods in document["paths"].items() if "requestBody" in methods.get("post", {})}
    here = {*ROUTES, *(path for path, _ in STORED.values())}
    assert {path for path in read if path not in here and path.removeprefix("/v1") not in here} == set()


async def check_callbacks(make_stand: MakeStand, path: str, body: bytes, kind: bytes = b"application/json") -> None:
    longest: list[tuple[float, str]] = []
    for _ in range(ROUNDS):
        stand = make_stand(info={"embedding_dim": 8} if path in EMBEDS else {"context_len": 1000})
        stand.scheduler.max_running = 32  # it shares the loop with what is measured
        found: list[tuple[float, str]] = []
        gc.collect()
        gc.freeze()  # what the tests have piled up is not the server's to look through
        with timed_callbacks(found):
            status, _ = await post(stand, path, body, kind)
        gc.unfreeze()
        assert status < 500
        longest.append(max(found))
        if longest[-1][0] < MAX_SECONDS:
            return
    assert min(longest)[0] < MAX_SECONDS, min(longest)
