"""Programs that are coroutines."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

import sglang as sgl
from sglang import AsyncProgramState, ProgramState, RuntimeEndpoint
from sglang.lang.errors import ProgramError, RequestRefusedError

from .native_server import NativeServer


@sgl.function
async def chat(s: AsyncProgramState, question: str) -> str:
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("x", max_tokens=4))
    first = await s["x"]
    s += f"[{first}]" + sgl.gen("y", max_tokens=2)
    forks = s.fork(2)
    forks += lambda i: f"{i}" + sgl.gen("z", max_tokens=2)
    forks.join()
    return str(first)


async def test_arun(native: NativeServer, backend: RuntimeEndpoint) -> None:
    state = await chat.arun("q", temperature=0.5)
    assert isinstance(state, ProgramState)
    assert state.ret_value == state["x"] and len(state["z"]) == 2
    assert f"[{state['x']}]{state['y']}" in state.text()
    assert native.generated()[0]["sampling_params"]["temperature"] == 0.5


def test_from_plain_code(backend: RuntimeEndpoint) -> None:
    assert chat("q")["z"]
    assert len(chat.run_batch([("a",), ("b",)])) == 2
    state = chat.run("q", stream=True)
    assert "".join(state.text_iter()) == state.text()


async def test_plain_programs_do_not_block_the_loop(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 0.2

    @sgl.function
    def plain(s: ProgramState) -> str:
        s += "p" + sgl.gen("x")
        return str(s["x"])

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.create_task(tick())
    state = await plain.arun()
    ticker.cancel()
    assert state.ret_value == state["x"] and ticks >= 5


async def test_all_reads(native: NativeServer, backend: RuntimeEndpoint) -> None:
    @sgl.function
    async def program(s: AsyncProgramState) -> None:
        with s.user():
            s += "hello"
        with s.var_scope("v"):
            s += sgl.gen("x", max_tokens=2)
            with pytest.raises(ProgramError):
                await s["v"]
        assert await s["v"] == await s.get_var("x") == await s.value("x")
        assert (await s.text()).endswith(await s["x"])
        assert (await s.messages())[1] == {"role": "user", "content": "hello"}
        assert (await s.get_meta_info("x"))["completion_tokens"] == 2
        assert await s.get_meta_info("nothing") is None
        assert await s.error() is None
        with pytest.raises(KeyError):
            await s["nothing"]
        async with s.copy() as c:
            c += sgl.gen("c", max_tokens=1)
        assert isinstance(await s["c"], str)
        assert "x" in s

    await program.arun()


async def test_streaming_inside_a_program(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.piece_delay = 0.005

    @sgl.function
    async def program(s: AsyncProgramState) -> list[str]:
        s += "p"
        pieces = [piece async for piece in s.stream(sgl.gen("x"))]
        assert "".join(pieces) == await s["x"]
        with pytest.raises(TypeError):
            [piece async for piece in s.stream(sgl.user("x"))]
        return pieces

    state = await program.arun()
    assert len(state.ret_value) > 2

    @sgl.function
    async def named(s: AsyncProgramState) -> list[str]:
        s += "p" + sgl.gen("x", stream=True)
        return [piece async for piece in s.stream("x")]

    assert len((await named.arun()).ret_value) > 2


async def test_errors_reach_the_awaiter(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.failures = [(400, {"error": {"message": "no"}})] * 2
    with pytest.raises(RequestRefusedError):
        await chat.arun("q")

    @sgl.function
    async def program(s: AsyncProgramState) -> None:
        s += sgl.gen("x")

    state = await program.arun()
    with pytest.raises(RequestRefusedError):
        state["x"]


async def test_cancelling_the_call_cancels_the_program(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 30
    task = asyncio.create_task(chat.arun("q"))
    while not native.num_open:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_arun_batch(native: NativeServer, backend: RuntimeEndpoint) -> None:
    native.delay = 0.01
    states = await chat.arun_batch([{"question": str(i)} for i in range(20)], max_concurrency=5)
    assert len(states) == 20 and all(len(state["z"]) == 2 for state in states)
    assert native.max_open <= 10


def test_a_batch_that_would_wait_for_itself(backend: RuntimeEndpoint) -> None:
    @sgl.function
    async def outer(s: AsyncProgramState) -> None:
        chat.run_batch([("a",)])

    with pytest.raises(RuntimeError, match="await arun_batch"):
        outer()

    @sgl.function
    async def calls(s: AsyncProgramState) -> None:
        chat("a")

    with pytest.raises(RuntimeError, match="would wait for itself"):
        calls()


async def test_streamed_from_a_loop(native: NativeServer, backend: RuntimeEndpoint) -> None:
    state = await chat.arun("q", stream=True)
    assert "".join([piece async for piece in state.text_async_iter()]) == state.text()


@pytest.mark.parametrize("num_states", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_ten_thousand_states_take_no_threads(native: NativeServer, backend: RuntimeEndpoint, num_states: int) -> None:
    """All alive at once, each waiting for the same moment."""
    resource = pytest.importorskip("resource")
    alive = most_threads = 0
    everybody = asyncio.Event()

    @sgl.function
    async def program(s: AsyncProgramState, i: int) -> None:
        nonlocal alive, most_threads
        s += f"{i} "
        alive += 1
        most_threads = max(most_threads, threading.active_count())
        if alive == num_states:
            everybody.set()
        await asyncio.wait_for(everybody.wait(), 120)
        s += sgl.gen("x", max_tokens=1)

    gc.collect()
    before, threads = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, threading.active_count()
    started = time.monotonic()
    states = program.run_batch([(i,) for i in range(num_states)], max_concurrency=num_states)
    assert time.monotonic() - started < 120
    assert all(state["x"] for state in states)
    assert most_threads - threads <= 2
    # under a gigabyte for ten thousand: under 100 KiB each
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < num_states * 100
