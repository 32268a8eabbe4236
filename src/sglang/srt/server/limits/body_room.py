"""The memory limit of the bodies of all requests together.

A large body reserves the bytes that it announces before it is read, and releases them when its request has been sent to the scheduler,
or has ended. The client that holds the fewest bytes is next. While others wait, a slow sender loses its reservation: nobody can fill the
room with bodies that never arrive.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope

from sglang.common.interrupts import wait_for
from sglang.srt.errors import OverloadError
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.limits.shares import Shares

SMALL_BODY = 64 << 10
"""bytes up to which a body is read at once"""
MIN_ROOM = 128 << 20
WAIT_SECONDS = 30.0
"""how long a body waits for its turn; then 503"""
PATIENCE_SECONDS = 5.0
MIN_RATE = 1 << 20
"""bytes a second, after PATIENCE_SECONDS, at which a body must come while others wait"""
ROOM, LEASE = "sglang.body_room", "sglang.body_lease"
"""keys of an ASGI scope: the room that there is, and what the request holds of it"""


class BodyLease:
    """The bytes that one request holds."""

    def __init__(self, room: BodyRoom, owner: Any, size: int) -> None:
        self.owner = owner
        self.size = size
        self._room = room
        self._since = asyncio.get_running_loop().time()

    async def receive(self, receive: Receive, num_read: int) -> Message:
        """The next message of a body of which `num_read` bytes are there. Raises OverloadError if it is late and others wait."""
        loop = asyncio.get_running_loop()
        while True:
            left = self._since + PATIENCE_SECONDS + num_read / MIN_RATE - loop.time()
            if left <= 0 and self._room.is_wanted:
                raise OverloadError("the body came too slowly while others were waiting; try again later")
            try:
                return await wait_for(receive(), max(left, 1.0))
            except asyncio.TimeoutError:
                continue

    def release(self) -> None:
        """Releases the room; called once."""
        self._room.give_back(self)


class BodyRoom:
    """Owner of the room. Everything runs on one event loop."""

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        room = max(2 * max_body, MIN_ROOM)
        self._shares = Shares(room, room, "large bodies")

    @property
    def is_wanted(self) -> bool:
        return self._shares.is_wanted

    async def take(self, scope: Scope, size: int | None) -> BodyLease:
        """Room for a body of `size` bytes (None: it may become as long as any), held by the request of `scope`. Raises
        OverloadError if there is none for long."""
        owner, size = _owner(scope), min(size, self._max_body) if size is not None else self._max_body
        await self._shares.acquire(owner, size, WAIT_SECONDS)
        scope[LEASE] = BodyLease(self, owner, size)
        found: BodyLease = scope[LEASE]
        return found

    def give_back(self, lease: BodyLease) -> None:
        self._shares.release(lease.owner, lease.size)


def _owner(scope: Scope) -> Any:
    """The owner of a body's bytes: the client's key, or its address."""
    return current_scope().key or (scope.get("client") or ("",))[0]


def room_of(scope: Scope) -> BodyRoom | None:
    """None for requests that do not come through BodyLimit."""
    return scope.get(ROOM)


def release_body(scope: Scope) -> None:
    """Gives back what the request of `scope` holds, if it does."""
    lease = scope.pop(LEASE, None)
    if lease is not None:
        lease.release()
