"""Small checks of JSON fields, with errors that name the field."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang.common.suggest import did_you_mean
from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.messages import TokenIds, pack_ids

logger = logging.getLogger(__name__)

_LONG_NAME = 5
"""shorter ones are too much alike"""
_MAX_HINTS = 32
"""in one object"""
_MAX_NOTED = 1000
_noted: set[str] = set()
PART_IDS = 100_000
"""whose types are looked at in one native call"""
SHOWN = 100
"""characters of a client's words that an error repeats"""


@dataclass(frozen=True)
class Fields:
    """Fields that a body may have. `read`: those that the route reads. `ignored`: those that change nothing in an answer; never
    built. `refused`: those that are not supported; a long value of theirs is refused unseen, a short one is for the route to
    judge. `takes_hints`: what is not known is ignored, too (note_unknown). `members`: names that clients write here and that
    belong into the object `members_of`; the error says so. `describe`: JSON schemas of what is read, by name; `required`: those
    that a body must have; `name`: of the body in the OpenAPI document."""

    read: frozenset[str]
    ignored: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    takes_hints: bool = False
    ids: frozenset[str] = frozenset()
    """names of token ids, or of lists of them: as many as a body can hold, and packed (messages.TokenIds) where it is long"""
    members: frozenset[str] = frozenset()
    members_of: str = ""
    describe: Callable[[], Mapping[str, dict[str, Any]]] = field(default=dict, compare=False)
    required: tuple[str, ...] = ()
    name: str = ""
    known: frozenset[str] = field(init=False)

    @classmethod
    def of(
        cls,
        schemas: Mapping[str, dict[str, Any]],
        ignored: frozenset[str] = frozenset(),
        refused: frozenset[str] = frozenset(),
        **more: Any,
    ) -> Fields:
        """The values that are read, with their schemas, and all else as above."""
        return cls(frozenset(schemas), ignored, refused, describe=lambda: schemas, **more)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", self.read | self.ignored | self.refused)

    def is_built(self, name: str) -> bool:
        return name in self.read or name in self.refused

    def check(self, names: Iterable[str]) -> None:
        """Raises RequestError for a name that is not known, unless it may be a hint."""
        unknown = [name for name in names if name not in self.known]
        if unknown and self.takes_hints:
            note_unknown(unknown, self.read, "field")
        elif unknown:
            raise RequestError(self._message(unknown[0]), unknown[0][:SHOWN])

    def _message(self, name: str) -> str:
        if name in self.members:
            return f"unknown field {name!r}: it belongs into {self.members_of}"
        return unknown_message(name, self.known, "field")


@dataclass(frozen=True)
class Refusal:
    """An unsupported field. `why`: the reason, or what to do instead. `neutral`: the values that ask for nothing; null always
    does."""

    why: str
    neutral: tuple[Any, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raises UnsupportedError unless the value is neutral."""
        if value is not None and value not in self.neutral:
            raise UnsupportedError(f"{name} is not supported by this server: {self.why}", name)


def check_known(body: dict[str, Any], known: Collection[str], what: str) -> None:
    """Raises RequestError for the first key that is not known, with the nearest that is."""
    for name in body:
        if name not in known:
            raise RequestError(unknown_message(name, known, what), name[:SHOWN])


def check_members(value: dict[str, Any], known: Collection[str], where: str, param: str) -> None:
    """Raises RequestError for a key of the nested object at `where` that is not known: what a client asks for there is done or
    refused. `param`: the field that holds it."""
    for name in value:
        if name not in known:
            raise RequestError(f"{where}: {unknown_message(str(name), known, 'key')}", param)


def note_unknown(names: Iterable[str], known: Collection[str], what: str) -> None:
    """For APIs whose clients add hints every month: names that are not known are ignored, each with one line in the log. Raises
    RequestError for one that is a known one misspelt, and for more than any client adds."""
    unknown = [name for name in names if name not in known]
    if len(unknown) > _MAX_HINTS:
        raise RequestError(f"unknown {what} {unknown[0][:SHOWN]!r}, and {len(unknown) - 1} more", unknown[0][:SHOWN])
    for name in unknown:
        if any(_is_slip(name[:SHOWN], meant) for meant in known):
            raise RequestError(unknown_message(name, known, what), name[:SHOWN])
        note_ignored(f"an unknown {what} {name[:SHOWN]!r}")


def note_ignored(what: str) -> None:
    """One line in the log, the first time, for what a client asks for in vain and its answer does not need."""
    what = what[: 2 * SHOWN]
    if what not in _noted and len(_noted) < _MAX_NOTED:
        _noted.add(what)
        logger.warning("ignored %s", what)


def in_client_words(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error with the fields called as the client's API has them. `names`: theirs by ours."""
    error.rename(names)
    return error


def _is_slip(name: str, meant: str) -> bool:
    """Whether they differ by what happens in typing: large letters and underscores, a plural; in longer names one letter that is
    wrong, missing or too much, or two that are swapped."""
    name, meant = (text.replace("_", "").replace("-", "").lower() for text in (name, meant))
    if name.removesuffix("s") == meant.removesuffix("s"):
        return True
    if abs(len(name) - len(meant)) > 1 or min(len(name), len(meant)) < _LONG_NAME:
        return False
    same = next((i for i, (a, b) in enumerate(zip(name, meant, strict=False)) if a != b), min(len(name), len(meant)))
    a, b = name[same:], meant[same:]
    return a[1:] in (b, b[1:]) or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def unknown_message(name: str, known: Collection[str], what: str) -> str:
    """`name` may be as long as a client likes: only its beginning is looked at."""
    return f"unknown {what} {name[:SHOWN]!r}{did_you_mean(name[:SHOWN], known)}"


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


def as_list(body: Mapping[str, Any], name: str, where: str = "", param: str | None = None) -> list[Any]:
    """Empty if absent or null. `where` and `param`: what an error calls the field, if not by its name."""
    value = body.get(name)
    if value is not None and not isinstance(value, list):
        raise RequestError(f"{where or name} must be a list", param or name)
    return value or []


def as_object(body: Mapping[str, Any], name: str, where: str = "", param: str | None = None) -> dict[str, Any]:
    """The same for an object."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise RequestError(f"{where or name} must be an object", param or name)
    return value or {}


def pack_rows(value: Any, name: str) -> TokenIds | list[TokenIds]:
    """A list of token ids, or of such lists. Raises RequestError."""
    if isinstance(value, (list, array)):
        if not (value and isinstance(value[0], (list, array))):
            return pack_row(value, name)
        return [pack_row(row, name) for row in value]
    raise RequestError(f"{name} must be a list of integers or a list of such lists", name)


def pack_row(value: Any, name: str) -> TokenIds:
    """A list of token ids. Raises RequestError."""
    if isinstance(value, array):
        return value
    if not isinstance(value, list) or not are_ints(value):
        raise RequestError(f"{name} must be a list of integers or a list of such lists", name)
    try:
        return pack_ids(value)
    except OverflowError as error:
        raise outside_all(name) from error


def outside_all(name: str) -> RequestError:
    return RequestError(f"{name}: an id is outside the vocabulary, and of every other", name)


def are_ints(row: list[Any]) -> bool:
    """Piece by piece: others have their turn between two of them."""
    return all(set(map(type, row[at : at + PART_IDS])) <= {int} for at in range(0, len(row), PART_IDS))


def as_ids(body: dict[str, Any], name: str) -> list[int]:
    value = body.get(name)
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise RequestError(f"{name} must be a list of integers", name)
    return value
