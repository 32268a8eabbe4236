"""Brings what is put on one event loop to coroutines on others.

    loop of the source    Relay.put -> Courier                  everything of a turn, by reader's loop
    loop of a reader      deliver -> buffers, readers woken     one call for all its streams

Waking another thread's loop costs more than everything else a token needs, and a loop that is woken while the source still works
only takes the interpreter from it: so what a step brings goes over at the end of the turn, in one call for each loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """The last thing that is put. `error` is raised at the reader, after what came before it."""

    error: Exception | None = None


class Courier:
    """One for each source; lives on its loop."""

    def __init__(self) -> None:
        self._loads: dict[asyncio.AbstractEventLoop, list[tuple[Relay[Any], Any]]] = {}

    def take(self, relay: Relay[T], item: T | End) -> None:
        if not self._loads:
            asyncio.get_running_loop().call_soon(self._go)
        self._loads.setdefault(relay.loop, []).append((relay, item))

    def _go(self) -> None:
        loads, self._loads = self._loads, {}
        for loop, load in loads.items():
            with contextlib.suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(_deliver, load)


def _deliver(load: list[tuple[Relay[Any], Any]]) -> None:
    for relay, item in load:
        relay.receive(item)


class Relay(Generic[T]):
    """Filled on the courier's loop, iterated on the one it was made on."""

    def __init__(self, courier: Courier) -> None:
        self.loop = asyncio.get_running_loop()
        self._courier = courier
        self._buffer: deque[T] = deque()
        self._end: End | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T | End) -> None:
        """To be called on the courier's loop."""
        self._courier.take(self, item)

    def receive(self, item: T | End) -> None:
        if isinstance(item, End):
            self._end = item
        else:
            self._buffer.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Relay[T]:
        return self

    async def __anext__(self) -> T:
        while not self._buffer:
            if self._end is not None:
                if self._end.error is not None:
                    raise self._end.error
                raise StopAsyncIteration
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._buffer.popleft()
