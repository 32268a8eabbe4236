"""Texts that arrive in pieces: cheap concatenation, and holding back a tail that may be the beginning of a marker."""

from __future__ import annotations


class Growing:
    """A text that grows piece by piece. To add to it costs as much as what is added, however long it is."""

    __slots__ = ("_parts", "length")

    def __init__(self, text: str = "") -> None:
        self._parts = [text] if text else []
        self.length = len(text)

    def __bool__(self) -> bool:
        return self.length > 0

    def __str__(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def add(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self.length += len(text)

    def take(self) -> str:
        """All of it; it is empty afterwards."""
        text, self._parts, self.length = str(self), [], 0
        return text


def held_len(text: str, marks: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that may begin one of `marks`."""
    longest = max(map(len, marks), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0
