"""A semaphore that clients share fairly: a limit in total, and a limit per client.

    async with shares.place(client, amount): ...        waits for its turn

The client that holds least is next, so a client with many requests waits behind one with few.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sglang.common.interrupts import wait_for
from sglang.srt.errors import OverloadError

Waiter = tuple[int, "asyncio.Future[None]"]
"""the amount that is wanted, and what is resolved when it is given"""


class Shares:
    """`total`: all there is; `share`: what one owner may hold. An amount beyond either is given when nothing else is held.
    Used on one event loop. `what` ends the sentence of an OverloadError: "too many WHAT"."""

    def __init__(self, total: int, share: int, what: str) -> None:
        self._total, self._share, self._what = total, share, what
        self._used = 0
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[Waiter]] = OrderedDict()

    @property
    def used(self) -> int:
        return self._used

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    @asynccontextmanager
    async def place(self, owner: str, amount: int = 1, patience: float | None = None) -> AsyncIterator[None]:
        """Raises OverloadError after `patience` seconds."""
        await self.acquire(owner, amount, patience)
        try:
            yield
        finally:
            self.release(owner, amount)

    async def acquire(self, owner: str, amount: int, patience: float | None = None) -> None:
        if not self._waiting and self._fits(owner, amount):
            self._give(owner, amount)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append((amount, future))
        self._serve()
        try:
            await wait_for(asyncio.shield(future), patience)
        except asyncio.TimeoutError:
            self._leave(owner, amount, future)
            raise OverloadError(f"too many {self._what} at once: try again later") from None
        except asyncio.CancelledError:
            self._leave(owner, amount, future)
            raise

    def release(self, owner: str, amount: int) -> None:
        self._used -= amount
        self._held[owner] -= amount
        if not self._held[owner]:
            del self._held[owner]
        self._serve()

    def _fits(self, owner: str, amount: int) -> bool:
        return self._has_share(owner, amount) and (self._used + amount <= self._total or not self._used)

    def _has_share(self, owner: str, amount: int) -> bool:
        return self._held.get(owner, 0) + amount <= self._share or owner not in self._held

    def _give(self, owner: str, amount: int) -> None:
        self._used += amount
        self._held[owner] += amount

    def _serve(self) -> None:
        """Gives what is free. An owner whose share is used up is passed over; for what does not fit into the rest all wait, or
        it would wait for ever."""
        while self._waiting:
            owners = [name for name, waiters in self._waiting.items() if self._has_share(name, waiters[0][0])]
            if not owners:
                return
            owner = min(owners, key=lambda name: self._held.get(name, 0))
            amount, future = self._waiting[owner][0]
            if not self._fits(owner, amount):
                return
            self._waiting[owner].popleft()
            if self._waiting[owner]:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            self._give(owner, amount)
            future.set_result(None)

    def _leave(self, owner: str, amount: int, future: asyncio.Future[None]) -> None:
        """A waiter gives up; it may have been served in the same moment."""
        if future.done():
            self.release(owner, amount)
            return
        future.cancel()
        waiters = self._waiting[owner]
        waiters.remove((amount, future))
        if not waiters:
            del self._waiting[owner]
        self._serve()


class SharesByName:
    """Shares of each of many things, as of every host: whoever holds all that one owner may have of a name leaves some of it to
    others, and all of other names."""

    def __init__(self, total: int, share: int, what: str) -> None:
        self._total, self._share, self._what = total, share, what
        self._by_name: dict[str, Shares] = {}

    async def acquire(self, name: str, owner: str, patience: float | None = None) -> None:
        """Raises OverloadError after `patience` seconds."""
        shares = self._by_name.setdefault(name, Shares(self._total, self._share, self._what))
        try:
            await shares.acquire(owner, 1, patience)
        finally:
            self._forget_unused(name)

    def release(self, name: str, owner: str) -> None:
        self._by_name[name].release(owner, 1)
        self._forget_unused(name)

    @asynccontextmanager
    async def place(self, name: str, owner: str, patience: float | None = None) -> AsyncIterator[None]:
        await self.acquire(name, owner, patience)
        try:
            yield
        finally:
            self.release(name, owner)

    def _forget_unused(self, name: str) -> None:
        shares = self._by_name.get(name)
        if shares is not None and not shares.used and not shares.is_wanted:
            del self._by_name[name]


class Budget:
    """A limit of all owners together and of each. Nothing waits here: beyond the limit there is an OverloadError, "too many
    WHAT"."""

    def __init__(self, total: int, share: int, what: str) -> None:
        self._total, self._share, self._what = total, share, what
        self._used = 0
        self._held: Counter[str] = Counter()

    @property
    def used(self) -> int:
        return self._used

    def take(self, owner: str, amount: int) -> None:
        if self._used + amount > self._total or self._held.get(owner, 0) + amount > self._share:
            raise OverloadError(f"too many {self._what} at once: try again later")
        self._used += amount
        self._held[owner] += amount

    def give_back(self, owner: str, amount: int) -> None:
        self._used -= amount
        self._held[owner] -= amount
        if not self._held[owner]:
            del self._held[owner]
