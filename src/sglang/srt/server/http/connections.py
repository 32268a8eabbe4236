"""All connections of a server: how many there may be, and how much of what they sent may be no request yet.

    resting    no request is being answered: a head is awaited, or half of one is there
    busy       a request is being read or answered

Where there are too many, or they hold too much, the one that has rested longest is closed: whoever opens connections and says
nothing keeps nobody out.
"""

from __future__ import annotations

from typing import Protocol

MAX_HELD_BYTES = 32 << 20
"""unfinished heads and requests sent ahead, of all connections together"""


class Connection(Protocol):
    def cut_off(self) -> None:
        """Closes it at once, whatever is unsent."""


class Connections:
    """Owner of the count. `max_open`: most connections at a time."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._held: dict[Connection, int] = {}
        self._resting: dict[Connection, None] = {}
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def enter(self, connection: Connection) -> bool:
        """Whether there is room for a new one, if need be in the place of one that rests. It enters in any case."""
        if len(self._held) >= self._max_open:
            self._close_longest_resting()
        self._held[connection] = 0
        return len(self._held) <= self._max_open

    def leave(self, connection: Connection) -> None:
        self._held_bytes -= self._held.pop(connection, 0)
        self._resting.pop(connection, None)

    def rest(self, connection: Connection) -> None:
        if connection in self._held:
            self._resting[connection] = None

    def work(self, connection: Connection) -> None:
        self._resting.pop(connection, None)

    def hold(self, connection: Connection, num_bytes: int) -> None:
        """Notes how much it sent that is no request yet."""
        before = self._held.get(connection)
        if before is None or before == num_bytes:
            return
        self._held[connection] = num_bytes
        self._held_bytes += num_bytes - before
        while self._held_bytes > MAX_HELD_BYTES:
            if not self._close_longest_resting():
                self._close(connection)
                return

    def _close_longest_resting(self) -> bool:
        for connection in self._resting:
            self._close(connection)
            return True
        return False

    def _close(self, connection: Connection) -> None:
        self.leave(connection)
        connection.cut_off()
