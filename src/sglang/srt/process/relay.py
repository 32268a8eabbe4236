"""Message passing between threads of one process: between server and scheduler (LocalLink), and from one event loop to coroutines on
others (Relay).

    loop of the source    Relay.put -> its buffer, Courier      the readers of a turn, by their loops
    loop of a reader      readers woken, buffers emptied        one call for all its streams

Waking another thread's loop costs more than everything else that a token needs, and a loop that wakes while the source still works
competes for the interpreter lock. So the readers of a step's outputs are woken at the end of the turn, in one call for each loop.
Items are in a buffer that both sides see: however late a reader is, only wake-up calls queue for its loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from sglang.srt.messages import FromScheduler, ToScheduler

T = TypeVar("T")

READ_SECONDS = 0.002


@dataclass(frozen=True)
class End:
    """The last thing that is put. `error` is raised at the reader, after what came before it."""

    error: Exception | None = None


class LoopShare:
    """Lets others of a loop have their turn where one always finds something to do."""

    SECONDS = 0.005

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begins a new period; called after each wait."""
        self.ends_at = time.monotonic() + self.SECONDS

    @property
    def is_used_up(self) -> bool:
        return time.monotonic() > self.ends_at

    async def give_way(self) -> None:
        await asyncio.sleep(0)
        self.begin()


class Buffer(Protocol[T]):
    """Items that were put and not yet read. It may join items where they pile up."""

    def __len__(self) -> int: ...

    def put(self, item: T) -> None: ...

    def pop(self) -> T: ...


class Fifo(Generic[T]):
    """A buffer that keeps items as they are."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        self._items.append(item)

    def pop(self) -> T:
        return self._items.popleft()


class Unread:
    """Items that were handed over and not yet read: a thread asks that would otherwise compete with the readers for a core."""

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
        """Waits for READ_SECONDS at most: items not read by then are not waited for again."""
        if not self._none.wait(READ_SECONDS):
            self._forget(set(self._open))

    def _forget(self, some: set[int]) -> None:
        with self._lock:
            self._open -= some
            if not self._open:
                self._none.set()


class LocalLink:
    """Both ends in one process: the scheduler runs in a thread, `handler`, to be set before it does, is called on the server's event
    loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.handler: Callable[[FromScheduler], None] = lambda message: None
        self._queue: queue.SimpleQueue[ToScheduler] = queue.SimpleQueue()
        self.unread = Unread()

    def post(self, message: ToScheduler) -> None:
        """Server to scheduler."""
        self._queue.put(message)

    def receive(self, timeout: float) -> list[ToScheduler]:
        messages: list[ToScheduler] = []
        try:
            messages.append(self._queue.get(timeout > 0, timeout or None))
            while True:
                messages.append(self._queue.get_nowait())
        except queue.Empty:
            return messages

    def send(self, message: FromScheduler) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._handle, message, self.unread.add())

    def _handle(self, message: FromScheduler, was_read: Callable[[], None]) -> None:
        self.handler(message)
        self._loop.call_soon(was_read)  # after what the handler leaves for the end of the turn

    def let_read(self) -> None:
        """Otherwise the reader waits for a core until those that compute have had their share, and then one waits for the other."""
        self.unread.wait()


class Courier:
    """One for each source; lives on its loop."""

    def __init__(self, unread: Unread) -> None:
        self._unread = unread
        self._waiting: dict[asyncio.AbstractEventLoop, dict[Relay[Any], None]] = {}

    def call(self, relay: Relay[T]) -> None:
        """Wakes its reader at the end of this turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._go)
        self._waiting.setdefault(relay.loop, {})[relay] = None

    def _go(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for loop, relays in waiting.items():
            was_read = self._unread.add()
            try:
                loop.call_soon_threadsafe(_wake, relays, was_read)
            except RuntimeError:  # closed
                was_read()


def _wake(relays: dict[Relay[Any], None], was_read: Callable[[], None]) -> None:
    for relay in relays:
        relay.wake()
    asyncio.get_running_loop().call_soon(was_read)  # once those that were woken have had their turn


class Relay(Generic[T]):
    """Filled on the courier's loop, iterated on the one it was made on."""

    def __init__(self, courier: Courier, buffer: Buffer[T] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self._courier = courier
        self._lock = threading.Lock()
        self._buffer: Buffer[T] = buffer if buffer is not None else Fifo()
        self._end: End | None = None
        self._share = LoopShare()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T | End) -> None:
        """To be called on the courier's loop."""
        with self._lock:
            if isinstance(item, End):
                self._end = item
            else:
                self._buffer.put(item)
        self._courier.call(self)

    def wake(self) -> None:
        """To be called on the reader's loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Relay[T]:
        return self

    async def __anext__(self) -> T:
        if self._share.is_used_up:
            await self._share.give_way()
        while True:
            with self._lock:
                if len(self._buffer):
                    return self._buffer.pop()
                end = self._end
            if end is not None:
                if end.error is not None:
                    raise end.error
                raise StopAsyncIteration
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            self._share.begin()
