"""A least recently used (LRU) cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Keeps entries whose costs (bytes, say; 1 each by default) add up to `max_cost` at most. For one thread."""

    def __init__(self, max_cost: int) -> None:
        self._max_cost = max_cost
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.cost = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which counts as used now."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def get_or_put(self, key: K, make: Callable[[], V]) -> V:
        """The value, which counts as used now; a new one if there is none."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found

    def put(self, key: K, value: V, cost: int = 1) -> None:
        """Adds or replaces an entry, and drops old ones until all fit; the new one, too, if it costs more than all may."""
        _, old_cost = self._entries.pop(key, (None, 0))
        self._entries[key] = value, cost
        self.cost += cost - old_cost
        while self.cost > self._max_cost:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.cost -= dropped

    def clear(self) -> None:
        self._entries.clear()
        self.cost = 0
