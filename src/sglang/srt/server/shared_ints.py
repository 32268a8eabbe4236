"""Shared int objects for token ids: a long list of ids repeats the same few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class SharedInts(dict[Any, Any]):
    """One object for each number that was seen: an id in a list then takes 8 bytes, and not 36."""

    def __missing__(self, key: Any) -> Any:
        self[key] = key
        return key

    def share(self, ids: Iterable[int]) -> list[int]:
        """The same ids, each as its shared object."""
        return list(map(self.__getitem__, ids))
