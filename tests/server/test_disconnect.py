"""Clients that hang up, over a real socket: their requests end within a step."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from openai import AsyncOpenAI

from sglang.srt.config import HttpOptions
from sglang.srt.process.uvicorn_server import HttpServer, uvicorn_config
from tests.server.conftest import MakeStand, Stand

HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@asynccontextmanager
async def serving(stand: Stand, ours: bool = True) -> AsyncIterator[int]:
    """`ours`: by our protocol, which says itself that a client has gone."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    plain = uvicorn.Config(stand.app, log_config=None, lifespan="off")
    server = HttpServer(uvicorn_config(stand.app, HttpOptions(log_level="error"))) if ours else uvicorn.Server(plain)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def send(port: int, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    writer.write(HEAD % (path.encode(), len(data)) + data)
    await writer.drain()
    return reader, writer


def hang_up(writer: asyncio.StreamWriter) -> None:
    """With a reset: a mere end may be that of a client that still reads."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


GENERATE = {"text": "The quick brown", "sampling_params": {"max_new_tokens": 200, "ignore_eos": True, "n": 2}}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "ignore_eos": True}
LONG = CHAT | {"metadata": {"a": "b" * 300_000}}
"""while so much is read, reading pauses"""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"), [("/generate", GENERATE), ("/v1/chat/completions", CHAT), ("/v1/chat/completions", LONG)]
)
@pytest.mark.parametrize("ours", [True, False])
async def test_hanging_up_aborts(make_stand: MakeStand, path: str, body: dict[str, Any], stream: bool, ours: bool) -> None:
    stand = make_stand()
    async with serving(stand, ours) as port:
        stand.scheduler.paused = True
        reader, writer = await send(port, path, body | {"stream": stream})
        await until(lambda: stand.manager.num_in_flight > 0)
        if stream:
            stand.scheduler.step()
            head = await reader.readuntil(b"data: ")
            assert b"200 OK" in head
        in_flight = stand.manager.num_in_flight
        assert in_flight == (2 if path == "/generate" else 1)
        hang_up(writer)
        await until(lambda: stand.manager.num_in_flight == 0)
        assert len(stand.scheduler.aborted) == in_flight
        stand.scheduler.paused = False


async def test_only_the_request_at_hand_is_aborted(make_stand: MakeStand) -> None:
    """A connection whose client has left says so for the request that it waits for, not for one that was answered before."""
    stand = make_stand()
    async with serving(stand) as port:
        reader, writer = await send(port, "/v1/chat/completions", CHAT | {"max_tokens": 2})
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}}")
        stand.scheduler.paused = True
        _, other = await send(port, "/v1/chat/completions", CHAT)
        await until(lambda: stand.manager.num_in_flight == 1)
        hang_up(writer)
        await asyncio.sleep(0.05)
        assert stand.manager.num_in_flight == 1 and not stand.scheduler.aborted
        hang_up(other)
        await until(lambda: stand.manager.num_in_flight == 0)
        stand.scheduler.paused = False


@pytest.mark.parametrize("ours", [True, False])
async def test_hanging_up_before_the_first_output_aborts(make_stand: MakeStand, ours: bool) -> None:
    stand = make_stand()
    stand.scheduler.paused = True
    async with serving(stand, ours) as port:
        _, writer = await send(port, "/v1/chat/completions", CHAT | {"stream": True})
        await until(lambda: stand.manager.num_in_flight == 1)
        hang_up(writer)
        await until(lambda: stand.manager.num_in_flight == 0)
        assert len(stand.scheduler.aborted) == 1
        stand.scheduler.paused = False


async def test_a_dead_scheduler_ends_streams_with_an_error_event(make_stand: MakeStand) -> None:
    stand = make_stand()
    async with serving(stand) as port:
        reader, writer = await send(port, "/v1/chat/completions", CHAT | {"stream": True})
        await reader.readuntil(b"data: ")
        stand.scheduler.stuck = True
        stand.manager.scheduler_died("it crashed")
        rest = (await reader.readuntil(b"data: [DONE]\n\n")).decode()
        writer.close()
    assert '"message":"it crashed"' in rest


async def test_the_real_client_reads_everything(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("sesame",))
    async with serving(stand) as port, AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sesame") as client:
        messages: Any = [{"role": "user", "content": "The quick brown fox"}]
        whole = await client.chat.completions.create(
            model="x", messages=messages, max_tokens=9, n=2, logprobs=True, top_logprobs=2
        )
        assert [c.finish_reason for c in whole.choices] == ["length", "length"]
        assert whole.choices[0].logprobs is not None and len(whole.choices[0].logprobs.content or []) == 9
        assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
        async with client.chat.completions.stream(
            model="x", messages=messages, max_tokens=99, stream_options={"include_usage": True}
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].finish_reason == "stop"
        assert (final.choices[0].message.content or "").startswith(whole.choices[0].message.content or "?")
        assert final.usage is not None and final.usage.completion_tokens > 9
        text = await client.completions.create(model="x", prompt="Paris is", max_tokens=3, logprobs=1, echo=True)
        assert text.choices[0].text.startswith("Paris is")
        assert [m.id async for m in client.models.list()] == ["test-model"]
        follow_up = [*messages, whole.choices[0].message.model_dump(), {"role": "user", "content": "Go on"}]
        assert (await client.chat.completions.create(model="x", messages=follow_up, max_tokens=1)).choices
