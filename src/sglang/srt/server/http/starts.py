"""When the requests that came begin: a few in each turn of the event loop.

A thousand clients may send at the same moment. What each costs at first (its head and body looked through, its text tokenized) is little, but
in one turn of the loop it would add up, and whoever asks for /health or reads a stream would wait for the sum.

    turn k      requests 1 .. AT_ONCE begin     others wait in order of arrival
    turn k + 1  streams, /health, messages of the scheduler, and the next AT_ONCE
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

AT_ONCE = 32


class Starts:
    """Owner of the requests that have come and not begun. Used by one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._num_begun = 0
        """in this turn"""

    def put(self, begin: Callable[[], None]) -> None:
        """Calls `begin` now, or in a later turn."""
        if self._num_begun < AT_ONCE:
            self._begin(begin)
        else:
            self._waiting.append(begin)

    def _begin(self, begin: Callable[[], None]) -> None:
        if not self._num_begun:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._num_begun += 1
        begin()

    def _next_turn(self) -> None:
        self._num_begun = 0
        while self._waiting and self._num_begun < AT_ONCE:
            self._begin(self._waiting.popleft())
