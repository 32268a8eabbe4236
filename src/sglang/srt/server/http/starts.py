"""Limits of the work in each turn of the event loop: bytes to parse, and requests to begin.

A thousand clients may send at the same moment. What each costs at first (its head and body parsed, its text tokenized) is little, but
in one turn of the loop it would add up, and whoever asks for /health or reads a stream would wait for the sum.

    turn k      parsing for TURN_SECONDS, requests 1 .. AT_ONCE begin     others wait in order of arrival
    turn k + 1  streams, /health, messages of the scheduler, then the others, within the same limits
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

AT_ONCE = 32
TURN_SECONDS = 0.01
"""of parsing, of all connections together"""
SHARE_SECONDS = 0.001
"""of them, for one connection while others wait"""


class ParseTime:
    """The time for parsing that is left in this turn, shared by all connections. Used by one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._end = 0.0
        """of this turn's time; 0 until something is parsed"""

    def is_up(self, began: float) -> bool:
        """Whether a connection that has been parsing since `began` (time.monotonic) is to stop."""
        now = time.monotonic()
        if not self._end:
            self._end = now + TURN_SECONDS
            asyncio.get_running_loop().call_soon(self._next_turn)
        return now > self._end or (bool(self._waiting) and now > began + SHARE_SECONDS)

    def wait(self, parse: Callable[[], None]) -> None:
        """Calls `parse` when it is its turn."""
        self._waiting.append(parse)

    def _next_turn(self) -> None:
        self._end = 0.0
        for _ in range(len(self._waiting)):
            if self.is_up(time.monotonic()):
                return
            self._waiting.popleft()()


class Starts:
    """Owner of the requests that have come and not begun. `parsing`: the time for those that are coming. Used by one event loop."""

    def __init__(self) -> None:
        self.parsing = ParseTime()
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
