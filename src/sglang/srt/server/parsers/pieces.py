"""The output of parsers: a stream of pieces, each new text of one kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Union


@dataclass(frozen=True)
class Text:
    """Content for the user."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Reasoning: what the model writes for itself before it answers."""

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


class Parser(Protocol):
    """Reads one answer as it grows. Whatever the cuts, the same pieces come out once joined."""

    def feed(self, text: str) -> list[Piece]:
        """Pieces that are certain after `text`."""
        ...

    def finish(self) -> list[Piece]:
        """The remaining pieces at the end of the answer, however it ended."""
        ...
