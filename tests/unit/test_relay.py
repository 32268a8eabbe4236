"""Items put on one event loop arrive on another: in order, complete, with their error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from sglang.srt.process.relay import Courier, End, Relay, Unread


class Source:
    """A loop on its own thread, and its courier."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.unread = Unread()
        self.courier = Courier(self.unread)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def put_numbers(self, relays: list[Relay[int]], end: int, error: Exception | None = None) -> None:
        """0, 1, ... end - 1 to each of them, several in some turns of the loop, one or none in others."""

        async def work() -> None:
            for i in range(end):
                for relay in relays:
                    relay.put(i)
                if i % 7 == 0:
                    await asyncio.sleep(0)
            for relay in relays:
                relay.put(End(error))

        asyncio.run_coroutine_threadsafe(work(), self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    yield source
    source.close()


async def test_everything_comes_in_order(source: Source) -> None:
    async def take(relay: Relay[int]) -> list[int]:
        return [i async for i in relay]

    relays: list[Relay[int]] = [Relay(source.courier) for _ in range(8)]
    source.put_numbers(relays, 500)
    for got in await asyncio.wait_for(asyncio.gather(*map(take, relays)), 30):
        assert got == list(range(500))


async def test_an_error_comes_after_what_was_before_it(source: Source) -> None:
    relay: Relay[int] = Relay(source.courier)
    source.put_numbers([relay], 20, ValueError("broken"))
    got: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        async for i in relay:
            got.append(i)
    assert got == list(range(20))


async def test_readers_on_several_loops(source: Source) -> None:
    got: dict[int, list[int]] = {}

    def read(name: int) -> None:
        async def take() -> list[int]:
            relay: Relay[int] = Relay(source.courier)
            source.put_numbers([relay], 100)
            return [i async for i in relay]

        got[name] = asyncio.run(take())

    await asyncio.wait_for(asyncio.gather(*(asyncio.to_thread(read, i) for i in range(3))), 30)
    assert got == {i: list(range(100)) for i in range(3)}


async def test_a_reader_with_a_closed_loop_does_not_disturb_others(source: Source) -> None:
    async def leave() -> Relay[int]:
        return Relay(source.courier)

    gone = await asyncio.to_thread(asyncio.run, leave())
    relay: Relay[int] = Relay(source.courier)
    source.put_numbers([gone, relay], 20)
    assert [i async for i in relay] == list(range(20))
    for _ in range(500):  # it was read, and is not noted yet
        if not len(source.unread):
            break
        await asyncio.sleep(0.01)
    assert len(source.unread) == 0


def test_what_is_read_is_not_waited_for() -> None:
    unread = Unread()
    first, second = unread.add(), unread.add()
    second()
    assert len(unread) == 1
    first()
    assert len(unread) == 0
    unread.wait()


def test_a_reader_that_is_gone_is_waited_for_once() -> None:
    unread = Unread()
    late = unread.add()
    unread.wait()
    assert len(unread) == 0
    unread.add()
    late()
    assert len(unread) == 1
