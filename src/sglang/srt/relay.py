"""Brings what is put on one event loop to coroutines on others.

    loop of the source    Relay.put -> Courier                  everything of a turn, by reader's loop
    loop of a reader      deliver -> buffers, readers woken     one call for all its streams

Waking another thread's loop costs more than everything else a token needs, and a loop that is woken while the source still works
only takes the interpreter from it: so what a step brings goes over at the end of the turn, in one call for each loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

READ_SECONDS = 0.002


@dataclass(frozen=True)
class End:
    """The last thing that is put. `error` is raised at the reader, after what came before it."""

    error: Exception | None = None


class Unread:
    """What has been handed over and not been read: a thread asks that would otherwise compete with the readers for a core."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self._open: set[int] = set()
        self._none = threading.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self) -> Callable[[], None]:
        """The function that the reader is to call."""
        with self._lock:
            self._last += 1
            self._open.add(self._last)
            self._none.clear()
        return partial(self._forget, {self._last})

    def wait(self) -> None:
        """For READ_SECONDS at most: what has not been read by then is not waited for again."""
        if not self._none.wait(READ_SECONDS):
            self._forget(set(self._open))

    def _forget(self, some: set[int]) -> None:
        with self._lock:
            self._open -= some
            if not self._open:
                self._none.set()


class Courier:
    """One for each source; lives on its loop."""

    def __init__(self, unread: Unread) -> None:
        self._unread = unread
        self._loads: dict[asyncio.AbstractEventLoop, list[tuple[Relay[Any], Any]]] = {}

    def take(self, relay: Relay[T], item: T | End) -> None:
        if not self._loads:
            asyncio.get_running_loop().call_soon(self._go)
        self._loads.setdefault(relay.loop, []).append((relay, item))

    def _go(self) -> None:
        loads, self._loads = self._loads, {}
        for loop, load in loads.items():
            was_read = self._unread.add()
            try:
                loop.call_soon_threadsafe(_deliver, load, was_read)
            except RuntimeError:  # closed
                was_read()


def _deliver(load: list[tuple[Relay[Any], Any]], was_read: Callable[[], None]) -> None:
    for relay, item in load:
        relay.receive(item)
    asyncio.get_running_loop().call_soon(was_read)  # once those that were woken have had their turn


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
