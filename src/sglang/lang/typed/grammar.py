"""Grammars composed of parts: `gen("x", grammar=concat("Age: ", capture("age", regex("[0-9]+")), optional(" years")))`.

A grammar compiles to one constraint: a regular expression, or where JSON is among the pieces an EBNF grammar with JSON rules.
Captures are found by matching the same pieces against the generated text; `s.value("x")` returns them as a dict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Captures = tuple[tuple[str, Any], ...]
Match = tuple[int, Captures]


class Piece:
    """A set of texts. `a + b` is one after the other, `a | b` is either; strings stand for themselves."""

    __slots__ = ()
    has_json = False

    def to_regex(self) -> str:
        """Raises ValueError for a grammar with JSON in it, which no regular expression describes."""
        raise NotImplementedError

    def to_ebnf(self, rules: dict[str, str]) -> str:
        """An expression of llguidance's Lark-like syntax; rules it needs are added to `rules`."""
        raise NotImplementedError

    def matches(self, text: str, start: int) -> Iterator[Match]:
        """Every (end, captures) with which the piece can match at `start`, longest first as far as that is known."""
        raise NotImplementedError

    def __add__(self, other: Piece | str) -> Piece:
        return concat(self, other)

    def __radd__(self, other: str) -> Piece:
        return concat(other, self)

    def __or__(self, other: Piece | str) -> Piece:
        return one_of(self, other)

    def __ror__(self, other: str) -> Piece:
        return one_of(other, self)


@dataclass(frozen=True, slots=True)
class Literal(Piece):
    text: str

    def to_regex(self) -> str:
        return re.escape(self.text)

    def to_ebnf(self, rules: dict[str, str]) -> str:
        return json.dumps(self.text)

    def matches(self, text: str, start: int) -> Iterator[Match]:
        if text.startswith(self.text, start):
            yield start + len(self.text), ()


@dataclass(frozen=True, slots=True)
class Regex(Piece):
    pattern: str

    def to_regex(self) -> str:
        return f"(?:{self.pattern})"

    def to_ebnf(self, rules: dict[str, str]) -> str:
        return "/" + self.pattern.replace("/", r"\/") + "/"

    def matches(self, text: str, start: int) -> Iterator[Match]:
        compiled = re.compile(self.pattern)
        for end in range(len(text), start - 1, -1):
            if compiled.fullmatch(text, start, end):
                yield end, ()


@dataclass(frozen=True, slots=True)
class Json(Piece):
    schema: str
    has_json = True

    def to_regex(self) -> str:
        raise ValueError("JSON is not described by a regular expression")

    def to_ebnf(self, rules: dict[str, str]) -> str:
        name = f"json_{len(rules)}"
        rules[name] = f"%json {self.schema}"
        return name

    def matches(self, text: str, start: int) -> Iterator[Match]:
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            return
        yield end, ()


@dataclass(frozen=True, slots=True)
class Concat(Piece):
    pieces: tuple[Piece, ...]

    @property
    def has_json(self) -> bool:  # type: ignore[override]
        return any(piece.has_json for piece in self.pieces)

    def to_regex(self) -> str:
        return "".join(piece.to_regex() for piece in self.pieces)

    def to_ebnf(self, rules: dict[str, str]) -> str:
        return "(" + " ".join(piece.to_ebnf(rules) for piece in self.pieces) + ")"

    def matches(self, text: str, start: int) -> Iterator[Match]:
        yield from _in_a_row(self.pieces, text, start)


def _in_a_row(pieces: tuple[Piece, ...], text: str, start: int) -> Iterator[Match]:
    if not pieces:
        yield start, ()
        return
    for middle, first in pieces[0].matches(text, start):
        for end, rest in _in_a_row(pieces[1:], text, middle):
            yield end, first + rest


@dataclass(frozen=True, slots=True)
class OneOf(Piece):
    pieces: tuple[Piece, ...]

    @property
    def has_json(self) -> bool:  # type: ignore[override]
        return any(piece.has_json for piece in self.pieces)

    def to_regex(self) -> str:
        return "(?:" + "|".join(piece.to_regex() for piece in self.pieces) + ")"

    def to_ebnf(self, rules: dict[str, str]) -> str:
        return "(" + " | ".join(piece.to_ebnf(rules) for piece in self.pieces) + ")"

    def matches(self, text: str, start: int) -> Iterator[Match]:
        for piece in self.pieces:
            yield from piece.matches(text, start)


@dataclass(frozen=True, slots=True)
class Repeat(Piece):
    piece: Piece
    low: int
    high: int | None
    separator: Piece | None

    @property
    def has_json(self) -> bool:  # type: ignore[override]
        return self.piece.has_json or (self.separator is not None and self.separator.has_json)

    def _written(self, one: str, separator: str | None, group: str) -> str:
        """The repetition in either syntax; `group` is what opens a group."""
        space = " " if group == "(" else ""
        if separator is None:
            return f"{group}{one})" + _count(self.low, self.high)
        more_high = None if self.high is None else max(self.high - 1, 0)
        more = f"{group}{separator}{space}{one})" + _count(max(self.low - 1, 0), more_high)
        whole = f"{group}{one}{space}{more})"
        return whole if self.low else f"{whole}?"

    def to_regex(self) -> str:
        separator = None if self.separator is None else self.separator.to_regex()
        return self._written(self.piece.to_regex(), separator, "(?:")

    def to_ebnf(self, rules: dict[str, str]) -> str:
        separator = None if self.separator is None else self.separator.to_ebnf(rules)
        return self._written(self.piece.to_ebnf(rules), separator, "(")

    def matches(self, text: str, start: int, count: int = 0) -> Iterator[Match]:
        if self.high is None or count < self.high:
            step = (self.separator, self.piece) if count and self.separator is not None else (self.piece,)
            for middle, first in _in_a_row(step, text, start):
                if middle > start:  # an empty repetition would go on for ever
                    for end, rest in self.matches(text, middle, count + 1):
                        yield end, first + rest
        if count >= self.low:
            yield start, ()


def _count(low: int, high: int | None) -> str:
    known = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return known.get((low, high), f"{{{low},{'' if high is None else high}}}")


@dataclass(frozen=True, slots=True)
class Capture(Piece):
    name: str
    piece: Piece

    @property
    def has_json(self) -> bool:  # type: ignore[override]
        return self.piece.has_json

    def to_regex(self) -> str:
        return self.piece.to_regex() if isinstance(self.piece, Concat) else f"(?:{self.piece.to_regex()})"

    def to_ebnf(self, rules: dict[str, str]) -> str:
        return self.piece.to_ebnf(rules)

    def matches(self, text: str, start: int) -> Iterator[Match]:
        for end, inside in self.piece.matches(text, start):
            value: Any = text[start:end]
            if isinstance(self.piece, Json):
                value = json.loads(value)
            yield end, ((self.name, value), *inside)


def _piece(value: Piece | str) -> Piece:
    if isinstance(value, Piece):
        return value
    if isinstance(value, str):
        return Literal(value)
    raise TypeError(f"a grammar is made of strings and pieces, not {type(value).__name__}")


def literal(text: str) -> Piece:
    """Exactly this text."""
    return Literal(text)


def regex(pattern: str) -> Piece:
    """Any text that the regular expression matches whole. Raises re.error."""
    re.compile(pattern)
    return Regex(pattern)


def json_schema(schema: Any) -> Piece:
    """JSON of a schema: a dict, its JSON text, or a Python type."""
    if isinstance(schema, str):
        json.loads(schema)
        return Json(schema)
    if isinstance(schema, Mapping):
        return Json(json.dumps(schema))
    import pydantic

    return Json(json.dumps(pydantic.TypeAdapter(schema).json_schema()))


def concat(*pieces: Piece | str) -> Piece:
    """One after the other."""
    return Concat(tuple(map(_piece, pieces)))


def one_of(*pieces: Piece | str) -> Piece:
    """Any one of them."""
    if not pieces:
        raise ValueError("one_of needs at least one piece")
    return OneOf(tuple(map(_piece, pieces)))


def repeat(piece: Piece | str, low: int = 0, high: int | None = None, separator: Piece | str | None = None) -> Piece:
    """`low` to `high` times (None: any number), with `separator` between."""
    if low < 0 or (high is not None and high < max(low, 1)):
        raise ValueError(f"a piece cannot be repeated {low} to {high} times")
    return Repeat(_piece(piece), low, high, None if separator is None else _piece(separator))


def optional(piece: Piece | str) -> Piece:
    """Once or not at all."""
    return Repeat(_piece(piece), 0, 1, None)


def capture(name: str, piece: Piece | str) -> Piece:
    """The piece's text under a name; JSON as data. Captured several times, a list."""
    return Capture(name, _piece(piece))


def compile_grammar(piece: Piece) -> tuple[str, str]:
    """(kind, text) of the constraint: ("regex", ...) or ("ebnf", ...)."""
    if not piece.has_json:
        return "regex", piece.to_regex()
    rules: dict[str, str] = {}
    start = piece.to_ebnf(rules)
    return "ebnf", "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in rules.items())]) + "\n"


def parse_captures(piece: Piece, text: str) -> dict[str, Any]:
    """The captures of `text`. Raises ValueError when it does not match the grammar."""
    for end, captures in piece.matches(text, 0):
        if end == len(text):
            found: dict[str, list[Any]] = {}
            for name, value in captures:
                found.setdefault(name, []).append(value)
            return {name: values if len(values) > 1 else values[0] for name, values in found.items()}
    raise ValueError("it does not match the grammar")
