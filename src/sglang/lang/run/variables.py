"""The variables of one state: their values, which are still pending, and which have failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Name = str | None
SAME = object()
"""the object of a variable is its text"""


@dataclass
class LiveVariable:
    """A variable while it is written: what iterators follow."""

    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    done: bool = False


class Variables:
    """Changed only under the lock of the executor that owns it; single reads need no lock.

    `texts` are the results of `s[name]`, `objects` those of `s.value(name)` where they differ, `metas` the backend's metadata. A name
    is pending while pieces that write it are queued.
    """

    def __init__(self) -> None:
        self.texts: dict[Name, Any] = {}
        self.objects: dict[Name, Any] = {}
        self.metas: dict[Name, Any] = {}
        self.live: dict[Name, LiveVariable] = {}
        self._num_writers: dict[Name, int] = {}
        self._failed: set[Name] = set()
        self._of_parent: frozenset[Name] = frozenset()

    def expect(self, names: Iterable[Name]) -> None:
        """One more writer of each is queued."""
        for name in names:
            self._num_writers[name] = self._num_writers.get(name, 0) + 1

    def expect_parents(self, names: Iterable[Name]) -> None:
        """The parent's variables, which are inherited once the state starts."""
        self._of_parent = frozenset(names)

    def begin(self, name: Name) -> LiveVariable:
        live = self.live[name] = LiveVariable()
        return live

    def store(self, name: Name, text: Any, meta: Any = None, value: Any = SAME) -> None:
        """A queued writer has written."""
        if value is SAME:
            self.objects.pop(name, None)
        else:
            self.objects[name] = value
        self.texts[name] = text
        if meta is not None:
            self.metas[name] = meta
        left = self._num_writers.get(name, 0) - 1
        if left > 0:
            self._num_writers[name] = left
        else:
            self._num_writers.pop(name, None)
        live = self.live.get(name)
        if live is None or live.done:
            live = self.live[name] = LiveVariable(text if isinstance(text, str) else "")
        live.done = True

    def assign(self, name: Name, value: Any) -> None:
        """Set by the program's code, at once."""
        self.texts[name] = value
        self.objects.pop(name, None)
        self._failed.discard(name)

    def fail(self, names: Iterable[Name] = ()) -> None:
        """`names`, and whatever is still pending, will not be written."""
        self._failed.update(names, self._num_writers)
        self._num_writers.clear()
        for live in self.live.values():
            live.done = True

    def inherit(self, parent: Variables) -> None:
        """Takes the parent's values, save for names that were assigned here meanwhile."""
        self.texts = {**parent.texts, **self.texts}
        self.objects = {**parent.objects, **self.objects}
        self.metas = {**parent.metas, **self.metas}
        self._of_parent = frozenset()

    def is_pending(self, name: Name) -> bool:
        return name in self._num_writers

    def has_failed(self, name: Name) -> bool:
        return name in self._failed

    def has(self, name: Name) -> bool:
        """Has a value, or is going to have one."""
        return name in self.texts or name in self._num_writers or name in self._of_parent

    @property
    def names(self) -> list[Name]:
        """All with a value or a queued writer."""
        return [*self.texts, *(name for name in self._num_writers if name not in self.texts)]
