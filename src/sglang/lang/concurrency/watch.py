"""One version number that any number of threads and coroutines can wait on.

An Event can be set before its reader looks, or cleared by another reader; a number only grows, so nobody misses a change:
read `version`, look at the data, and if there is nothing new, wait for a version above the one read.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

_SLICE = 5.0
"""seconds after which a waiting thread looks by itself: no single lost wake-up can stop a program"""


class Watch:
    """`bump()` after each change; `wait`/`wait_async` return once the version exceeds `seen`."""

    __slots__ = ("_lock", "_wakers", "version")

    def __init__(self) -> None:
        self.version = 0
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []

    def bump(self) -> None:
        with self._lock:
            self.version += 1
            if not self._wakers:
                return
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def _register(self, seen: int, wake: Callable[[], None]) -> bool:
        """False when there is already something newer than `seen`."""
        with self._lock:
            if self.version > seen:
                return False
            self._wakers.append(wake)
            return True

    def _forget(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if wake in self._wakers:
                self._wakers.remove(wake)

    def wait(self, seen: int, timeout: float | None = None) -> bool:
        """Blocks this thread. False when `timeout` (seconds) passed without a change; None waits in slices, returning
        False after each, so that the caller looks again."""
        flag = threading.Event()
        if not self._register(seen, flag.set):
            return True
        changed = flag.wait(_SLICE if timeout is None else timeout)
        if not changed:
            self._forget(flag.set)
        return changed

    async def wait_async(self, seen: int) -> None:
        """The same for a coroutine of any event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            # the waiter's loop may be gone by now (asyncio.run ended): then it waits no more
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish)

        if not self._register(seen, wake):
            return
        try:
            await future
        finally:
            self._forget(wake)
