"""What one event loop yields arrives on another: in order, whole, with its error, and never far ahead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator

import pytest

from sglang.srt.relay import MAX_AHEAD, Doorbell, Relay


@pytest.fixture
def source() -> Iterator[Doorbell]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield Doorbell(loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


class Numbers:
    """0, 1, ... `end`: how many were made, whether it was closed."""

    def __init__(self, end: int, error: Exception | None = None) -> None:
        self.end, self.error, self.made = end, error, 0
        self.closed = threading.Event()

    async def __call__(self) -> AsyncGenerator[int, None]:
        try:
            for i in range(self.end):
                self.made += 1
                yield i
                if i % 7 == 0:
                    await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


async def test_everything_comes_in_order(source: Doorbell) -> None:
    async def take() -> list[int]:
        return [i async for i in Relay(Numbers(500)(), source)]

    for got in await asyncio.wait_for(asyncio.gather(*(take() for _ in range(8))), 30):
        assert got == list(range(500))


async def test_an_error_comes_after_what_was_before_it(source: Doorbell) -> None:
    got: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        async for i in Relay(Numbers(20, ValueError("broken"))(), source):
            got.append(i)
    assert got == list(range(20))


async def test_a_slow_caller_holds_the_source_back(source: Doorbell) -> None:
    numbers = Numbers(100)
    relay = Relay(numbers(), source)
    for i in range(10):
        assert await relay.__anext__() == i
        await asyncio.sleep(0.005)
        assert numbers.made <= i + 1 + MAX_AHEAD
    relay.close()
    assert await asyncio.to_thread(numbers.closed.wait, 10)


async def test_closed_while_it_works(source: Doorbell) -> None:
    closed = threading.Event()

    async def endless() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.sleep(1000)
        finally:
            closed.set()

    relay = Relay(endless(), source)
    assert await relay.__anext__() == 1
    relay.close()
    assert await asyncio.to_thread(closed.wait, 10)
