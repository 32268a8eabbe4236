"""Scheduling of compilation: a quick and a slow lane, with fair order of clients.

    waiting --> quick lane (2 places) --done within QUICK_SECONDS--> out
      ^               |
      |               '--> slow lane (2 places): until its time is up
      '-- no place: stopped, begins again when there is one

So slow constraints only delay each other. In both lanes the client with the least compile time goes first (start-time fair queueing, as
in admission/waiting.py): a thousand constraints of one client do not delay another client's first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

QUICK_SECONDS = 0.5
NUM_QUICK, NUM_SLOW = 2, 2
MAX_CLIENTS = 4096
"""whose time is remembered"""

Client = tuple[str, ...]
"""outermost first: (key, user)"""
T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items by client, and the seconds that were spent on each client."""

    def __init__(self) -> None:
        self._items: dict[Client, deque[T]] = {}
        self._spent: dict[Client, float] = {}
        self._level = 0.0
        """what had been spent on the client that was served last: who comes anew begins there"""

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def put(self, client: Client, item: T) -> None:
        if client not in self._items:
            for node in _nodes(client):
                self._spent[node] = max(self._spent.get(node, 0.0), self._level if len(node) == 1 else 0.0)
        self._items.setdefault(client, deque()).append(item)

    def pop(self) -> T:
        """The oldest of the client for whom least was spent. There is one."""
        client = min(self._items, key=lambda c: [self._spent.get(node, 0.0) for node in _nodes(c)])
        self._level = max(self._level, self._spent.get(client[:1], 0.0))
        items = self._items[client]
        item = items.popleft()
        if not items:
            del self._items[client]
        return item

    def charge(self, client: Client, seconds: float) -> None:
        for node in _nodes(client):
            self._spent[node] = self._spent.get(node, 0.0) + seconds
        if len(self._spent) > MAX_CLIENTS:
            waiting = {node for c in self._items for node in _nodes(c)}
            self._spent = {node: spent for node, spent in self._spent.items() if node in waiting}


def _nodes(client: Client) -> Iterator[Client]:
    for depth in range(1, max(len(client), 1) + 1):
        yield client[:depth]


class Lanes(Generic[T]):
    """Owner of the two lanes and of who waits for them. Its methods may be called on any thread."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._quick: FairQueue[tuple[Client, T]] = FairQueue()
        self._slow: FairQueue[tuple[Client, T]] = FairQueue()
        self._num_quick = self._num_slow = 0
        self._closed = False

    def put(self, client: Client, item: T) -> None:
        with self._ready:
            self._quick.put(client, (client, item))
            self._ready.notify()

    def take(self) -> Turn[T] | None:
        """Waits for an item that has a place in a lane; None when all is over."""
        with self._ready:
            while not self._closed:
                if len(self._quick) and self._num_quick < NUM_QUICK:
                    self._num_quick += 1
                    return Turn(self, *self._quick.pop(), is_slow=False)
                if len(self._slow) and self._num_slow < NUM_SLOW:
                    self._num_slow += 1
                    return Turn(self, *self._slow.pop(), is_slow=True)
                self._ready.wait()
            return None

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def change(self, turn: Turn[T]) -> bool:
        """The item was not done in time. True when it goes on in the slow lane; otherwise it waits for a place there."""
        with self._ready:
            self._num_quick -= 1
            self._ready.notify()
            if self._num_slow < NUM_SLOW and not len(self._slow):
                self._num_slow += 1
                turn.is_slow = True
                return True
            turn.has_place = False
            self._slow.put(turn.client, (turn.client, turn.item))
            return False

    def leave(self, turn: Turn[T], seconds: float) -> None:
        """The item is done, or has lost its place."""
        with self._ready:
            for waiting in (self._quick, self._slow):
                waiting.charge(turn.client, seconds)
            if turn.has_place and turn.is_slow:
                self._num_slow -= 1
            elif turn.has_place:
                self._num_quick -= 1
            self._ready.notify()


class Turn(Generic[T]):
    """An item that has a place in a lane, until `end`."""

    def __init__(self, lanes: Lanes[T], client: Client, item: T, is_slow: bool) -> None:
        self._lanes = lanes
        self.client = client
        self.item = item
        self.is_slow = is_slow
        self.has_place = True
        self._began = time.monotonic()

    def goes_on(self) -> bool:
        """Whether an item that has had QUICK_SECONDS in the quick lane may continue, now in the slow lane. If not, it restarts
        later."""
        return self.is_slow or self._lanes.change(self)

    def end(self) -> None:
        self._lanes.leave(self, time.monotonic() - self._began)
