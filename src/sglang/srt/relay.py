"""Brings what an asynchronous iterator yields on one event loop to a coroutine on another.

    loop of the engine    pump: async for reply -> buffer -> Doorbell(consumer's loop)
    loop of the caller    __anext__: buffer, or waits to be woken; makes room

Waking another thread's loop costs more than everything else a token needs, so a doorbell rings once for all that came
since its loop last looked: one wake-up a step, not one a token.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_AHEAD = 4
"""replies that wait for a slow caller; the iterator is not asked for more"""


class Doorbell:
    """Calls functions on a loop from other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._calls: deque[Callable[[], None]] = deque()
        self._rung = False

    def call(self, function: Callable[[], None]) -> None:
        """From any thread. Nothing happens if the loop has been closed."""
        self._calls.append(function)
        if self._rung:  # set after the last look into the deque began: the function will be seen
            return
        self._rung = True
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # closed
            self._calls.clear()

    def _answer(self) -> None:
        self._rung = False
        calls = self._calls
        while calls:
            calls.popleft()()


_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Doorbell] = weakref.WeakKeyDictionary()


def doorbell_of(loop: asyncio.AbstractEventLoop) -> Doorbell:
    """The loop's only doorbell. To be called on that loop."""
    bell = _bells.get(loop)
    if bell is None:
        bell = _bells[loop] = Doorbell(loop)
    return bell


class Relay(Generic[T]):
    """`replies`, which lives on the loop behind `source`, as an asynchronous iterator of the running loop. An error of `replies`
    is raised here after what came before it. `close` ends it early."""

    def __init__(self, replies: AsyncGenerator[T, None], source: Doorbell) -> None:
        self._replies = replies
        self._source = source
        self._bell = doorbell_of(asyncio.get_running_loop())
        self._buffer: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._room: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        source.call(self._start)

    # --- on the iterator's loop -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._pump())

    async def _pump(self) -> None:
        room = self._room = asyncio.Event()
        try:
            async for reply in self._replies:
                self._buffer.append(reply)
                self._bell.call(self._wake)
                while len(self._buffer) >= MAX_AHEAD:
                    room.clear()
                    if len(self._buffer) >= MAX_AHEAD:  # still, now that who takes one sees that room is wanted
                        await room.wait()
        except BaseException as error:  # noqa: BLE001  raised on the other loop
            self._error = error
        finally:
            await self._replies.aclose()
            self._ended = True
            self._bell.call(self._wake)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # --- on the caller's loop -------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Relay[T]:
        return self

    async def __anext__(self) -> T:
        while not self._buffer:
            ended = self._ended  # looked at before the buffer, which is filled first
            if ended and not self._buffer:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                if not self._buffer and not self._ended:
                    await self._waiter
            finally:
                self._waiter = None
        reply = self._buffer.popleft()
        if len(self._buffer) == MAX_AHEAD - 1 and self._room is not None:
            self._source.call(self._room.set)
        return reply

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """The iterator is not asked any further, and is cancelled if it works."""
        if not self._ended:
            self._source.call(self._stop)
