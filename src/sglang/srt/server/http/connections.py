"""All connections of a server: limits of their number, and of the bytes that they sent before a request is complete.

    idle       no request is being answered: waiting for a head, or for the rest of one
    busy       a request is being read or answered

Above a limit the connection that has been idle longest is closed: silent connections keep no other client out.
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
        self._idle: dict[Connection, None] = {}
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def enter(self, connection: Connection) -> bool:
        """Whether there is room for a new one, if need be in the place of one that rests. It enters in any case."""
        if len(self._held) >= self._max_open:
            self._close_longest_idle()
        self._held[connection] = 0
        return len(self._held) <= self._max_open

    def leave(self, connection: Connection) -> None:
        self._held_bytes -= self._held.pop(connection, 0)
        self._idle.pop(connection, None)

    def rest(self, connection: Connection) -> None:
        if connection in self._held:
            self._idle[connection] = None

    def work(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def hold(self, connection: Connection, num_bytes: int) -> None:
        """Notes how much it sent that is no request yet."""
        before = self._held.get(connection)
        if before is None or before == num_bytes:
            return
        self._held[connection] = num_bytes
        self._held_bytes += num_bytes - before
        while self._held_bytes > MAX_HELD_BYTES:
            if not self._close_longest_idle():
                self._close(connection)
                return

    def _close_longest_idle(self) -> bool:
        for connection in self._idle:
            self._close(connection)
            return True
        return False

    def _close(self, connection: Connection) -> None:
        self.leave(connection)
        connection.cut_off()
