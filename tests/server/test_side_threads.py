"""Long work on other threads: clients share them, and what nobody waits for any more is not begun."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sglang.srt.server.http.request_scope import RequestScope, enter_scope
from sglang.srt.server.side_threads import NUM_THREADS, run_in_thread


async def as_client(key: str, event: threading.Event, began: list[str]) -> str:
    """In a task, whose context is its own."""
    enter_scope(RequestScope(0.0, key))

    def work() -> str:
        began.append(key)
        assert event.wait(60)
        return key

    return await run_in_thread(work)


async def until(what: list[str], length: int) -> None:
    for _ in range(6000):
        if len(what) >= length:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


async def test_one_client_leaves_a_thread_for_the_others() -> None:
    event, began = threading.Event(), list[str]()
    many = [asyncio.create_task(as_client("a", event, began)) for _ in range(20)]
    await until(began, NUM_THREADS - 1)
    other = asyncio.create_task(as_client("b", event, began))
    await until(began, NUM_THREADS)
    assert began == ["a"] * (NUM_THREADS - 1) + ["b"]
    event.set()
    assert await asyncio.gather(*many, other) == ["a"] * 20 + ["b"]


async def test_what_nobody_waits_for_is_not_begun_and_what_runs_keeps_its_place() -> None:
    event, began = threading.Event(), list[str]()
    tasks = [asyncio.create_task(as_client("a", event, began)) for _ in range(10)]
    await until(began, NUM_THREADS - 1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    late = asyncio.create_task(as_client("a", event, began))
    await asyncio.sleep(0.05)
    assert began == ["a"] * (NUM_THREADS - 1), "threads that still work are not free"
    event.set()
    assert await late == "a" and len(began) == NUM_THREADS


async def test_errors_reach_whoever_waits() -> None:
    def work() -> None:
        raise ValueError("no")

    for _ in range(2 * NUM_THREADS):
        with pytest.raises(ValueError):
            await run_in_thread(work)
