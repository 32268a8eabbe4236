"""Waiting with a time limit: a cancellation is never forgotten, and what nobody waits for any longer has ended."""

from __future__ import annotations

import asyncio

import pytest

from sglang.common.interrupts import wait_for
from sglang.srt.server.limits.shares import Shares, SharesByName


async def test_a_cancellation_that_comes_with_the_result() -> None:
    for seconds in (None, 10.0):
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiter = asyncio.ensure_future(wait_for(future, seconds))
        await asyncio.sleep(0.01)
        future.set_result(1)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter


async def test_results_errors_and_limits() -> None:
    ended = []

    async def work(seconds: float, error: Exception | None = None) -> int:
        try:
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
            return 7
        finally:
            ended.append(seconds)

    assert await wait_for(work(0), 5) == await wait_for(work(0.001), None) == 7
    with pytest.raises(KeyError):
        await wait_for(work(0, KeyError()), 5)
    with pytest.raises(asyncio.TimeoutError):
        await wait_for(work(30), 0.01)
    with pytest.raises(asyncio.TimeoutError):
        await wait_for(work(31), 0)
    left = asyncio.ensure_future(wait_for(work(32), 40))
    await asyncio.sleep(0.01)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert ended in ([0, 0.001, 0, 30, 32], [0, 0.001, 0, 30, 31, 32])


async def test_an_error_beside_the_cancellation() -> None:
    """of the work, as it ends, is what is told; no limit hides it."""

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise KeyError("on the way out") from None

    with pytest.raises(KeyError):
        await wait_for(work(), 0.01)


@pytest.mark.parametrize("turns", range(6))
async def test_clients_that_leave_together(turns: int) -> None:
    """A place that one gives back as it leaves goes to another which leaves, too: that one does not stay."""
    shares, names = Shares(1, 1, "x"), SharesByName(1, 1, "x")
    running = list[int]()

    async def client(number: int) -> None:
        async with names.place("host", "a", 10), shares.place("a", 1, 10):
            running.append(number)
            await asyncio.sleep(60)

    clients = [asyncio.ensure_future(client(i)) for i in range(30)]
    await asyncio.sleep(0.05)
    for one in clients:
        one.cancel()
        for _ in range(turns):  # of the event loop
            await asyncio.sleep(0)
    await asyncio.wait(clients, timeout=5)
    assert all(one.cancelled() for one in clients)
    assert not shares.used and not names._by_name
