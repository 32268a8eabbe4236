"""What an answer is made of, as parsers tell it: a stream of pieces, each new text of one kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Union


@dataclass(frozen=True)
class Text:
    """Content for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """What the model thought before it answered."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A tool call begins; `index` counts the calls of an answer."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments: pieces of one call join to JSON text. `is_last`: there are no more of them. A call without such a
    piece was cut off."""

    index: int
    text: str
    is_last: bool = False


Piece = Union[Text, Reasoning, CallBegin, CallArguments]  # noqa: UP007  evaluated at run time


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


class Parser(Protocol):
    """Reads one answer as it grows. Whatever the cuts, the same pieces come out once joined."""

    def feed(self, text: str) -> list[Piece]:
        """What `text` makes certain."""
        ...

    def finish(self) -> list[Piece]:
        """What is left when the answer is over, however it ended."""
        ...


def held_len(text: str, marks: tuple[str, ...]) -> int:
    """How much of the end of `text` may be the beginning of one of `marks`."""
    longest = max(map(len, marks), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0
