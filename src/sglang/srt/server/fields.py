"""Small checks of JSON fields, with errors that name the field."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.errors import RequestError

SHOWN = 100
"""characters of a client's words that an error repeats"""


@dataclass(frozen=True)
class Fields:
    """What a body may hold. `read`: values that the route looks at. `ignored`: what changes nothing in an answer; never built.
    `refused`: what is not done here; a long value of theirs is refused unseen, a short one is for the route to judge."""

    read: frozenset[str]
    ignored: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    known: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", self.read | self.ignored | self.refused)

    def check(self, name: str) -> None:
        """Raises RequestError for a name that is not known."""
        if name not in self.known:
            raise RequestError(unknown_message(name, self.known, "field"), name[:SHOWN])


def check_known(body: dict[str, Any], known: Collection[str], what: str) -> None:
    """Raises RequestError for the first key that is not known, with the nearest that is."""
    for name in body:
        if name not in known:
            raise RequestError(unknown_message(name, known, what), name[:SHOWN])


def unknown_message(name: str, known: Collection[str], what: str) -> str:
    """`name` may be as long as a client likes: only its beginning is looked at."""
    close = difflib.get_close_matches(name[:SHOWN], sorted(known), n=1)
    return f"unknown {what} {name[:SHOWN]!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def as_bool(body: dict[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", name)
    return value


def as_int(body: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"{name} must be an integer between {low} and {high}", name)
    return value


def as_text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{name} must be a string", name)
    return value


def as_texts(body: dict[str, Any], name: str) -> list[str]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"{name} must be a list of strings", name)
    return value


def as_ids(body: dict[str, Any], name: str) -> list[int]:
    value = body.get(name)
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise RequestError(f"{name} must be a list of integers", name)
    return value
