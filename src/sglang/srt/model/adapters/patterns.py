"""Regular expressions of strangers, matched in bounded time.

Python's matcher tries one way after another, holds the interpreter's lock meanwhile, and some patterns of 40 characters have more ways
than it could try in a year. Here all ways go on at once ("Regular Expression Search Algorithm", Thompson 1968): each part of a pattern
turns the set of positions that are reached into the next one.

    .*_proj  in  q_proj      {0}  --.*-->  {0, 1, ..., 6}  --_proj-->  {6}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from functools import lru_cache
from typing import Any

from sglang.common.regex_tree import codes, parser

MAX_LEN = 1024
MAX_STEPS = 200_000
"""positions that the parts of a pattern may be tried at, for one text"""

_Positions = Set[int]
_BRANCHING = re.compile(r"[*+?{|(\[^$\\]")
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    codes.CATEGORY_DIGIT: str.isdecimal,
    codes.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    codes.CATEGORY_SPACE: str.isspace,
    codes.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    codes.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    codes.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}


class PatternError(ValueError):
    """A pattern that is none, has a part that is not known here, or needs too many steps."""


@lru_cache(1 << 13)
def compiled(pattern: str) -> Pattern:
    """Raises PatternError."""
    return Pattern(pattern)


class Pattern:
    """One regular expression in Python's syntax, without flags, back references and possessive parts."""

    def __init__(self, pattern: str) -> None:
        self._plain = None if _BRANCHING.search(pattern) else re.compile(pattern)
        if len(pattern) > MAX_LEN:
            raise PatternError(f"has more than {MAX_LEN} characters")
        try:
            tree = parser.parse(pattern)
            self._parts = _parts(tree)
        except (re.error, OverflowError, RecursionError) as error:
            raise PatternError(f"is not a regular expression ({error})") from error
        if tree.state.flags & ~re.UNICODE:
            raise PatternError("has flags, which are not read here")

    @property
    def is_plain(self) -> bool:
        """Whether it holds but letters and dots: there is one way to match."""
        return self._plain is not None

    def ends(self, text: str, starts: _Positions) -> _Positions:
        """Where it may end if it begins at one of `starts`."""
        if self._plain is not None:
            found = (self._plain.match(text, start) for start in starts)
            return {match.end() for match in found if match is not None}
        return _Walk(text).follow(self._parts, starts)


def _parts(tree: Any) -> list[tuple[Any, Any]]:
    """A tree's pairs of code and value, with what they hold in the same form, and letters in a row as one text."""
    parts: list[tuple[Any, Any]] = []
    for code, value in tree:
        if code is codes.LITERAL:
            if parts and parts[-1][0] is codes.LITERAL:
                parts[-1] = (code, parts[-1][1] + chr(value))
            else:
                parts.append((code, chr(value)))
        elif code is codes.BRANCH:
            parts.append((code, [_parts(one) for one in value[1]]))
        elif code is codes.SUBPATTERN and not (value[1] or value[2]):
            parts.append((code, _parts(value[3])))
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            parts.append((codes.MAX_REPEAT, (value[0], value[1], _parts(value[2]))))
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            width = value[1].getwidth()[0] if value[0] < 0 else 0  # the parser sees that it has but one
            parts.append((code, (width, _parts(value[1]))))
        elif code in (codes.NOT_LITERAL, codes.ANY, codes.IN, codes.AT):
            parts.append((code, value))
        else:
            raise PatternError(f"has a part that is not read here ({str(code).lower()})")
    return parts


class _Walk:
    """Through one text. `_left`: steps."""

    def __init__(self, text: str) -> None:
        self._text, self._left = text, MAX_STEPS

    def follow(self, parts: list[tuple[Any, Any]], at: _Positions) -> _Positions:
        for code, value in parts:
            if not at:
                break
            self._left -= len(at)
            if self._left < 0:
                raise PatternError(f"takes more than {MAX_STEPS} steps")
            at = self._next(code, value, at)
        return at

    def _next(self, code: Any, value: Any, at: _Positions) -> _Positions:
        if code is codes.LITERAL:
            return {i + len(value) for i in at if self._text.startswith(value, i)}
        if code is codes.BRANCH:
            return set().union(*(self.follow(one, at) for one in value))
        if code is codes.SUBPATTERN:
            return self.follow(value, at)
        if code is codes.MAX_REPEAT:
            least, most, repeated = value
            return self._repeat(least, most, repeated, at)
        if code is codes.AT:
            return {i for i in at if self._is_at(value, i)}
        if code in (codes.ASSERT, codes.ASSERT_NOT):
            width, beside = value
            return {i for i in at if self._is_beside(width, beside, i) == (code is codes.ASSERT)}
        return {i + 1 for i in at if i < len(self._text) and _is_one(code, value, self._text[i])}

    def _repeat(self, least: int, most: int, parts: list[tuple[Any, Any]], at: _Positions) -> _Positions:
        """After a few rounds the positions stay what they are, since none goes back."""
        found: set[int] = set(at) if least == 0 else set()
        count = 0
        while count < most:
            after, before, known = self.follow(parts, at), at, len(found)
            at, count = after, count + 1
            if at == before:
                count = max(count, least)
            if count >= least:
                found |= at
            if not at or at == before or (count > least and most == codes.MAXREPEAT and len(found) == known):
                break
        return found

    def _is_at(self, where: Any, i: int) -> bool:
        if where in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
            return i == 0
        if where in (codes.AT_END, codes.AT_END_STRING):
            return i == len(self._text)
        is_word = _CATEGORIES[codes.CATEGORY_WORD]
        before, after = self._text[i - 1 : i] if i else "", self._text[i : i + 1]
        is_boundary = (before != "" and is_word(before)) != (after != "" and is_word(after))
        return is_boundary == (where is codes.AT_BOUNDARY)

    def _is_beside(self, width: int, parts: list[tuple[Any, Any]], i: int) -> bool:
        """Whether the parts follow i, or end there if they are looked for behind it."""
        if width == 0:
            return bool(self.follow(parts, {i}))
        return i >= width and i in self.follow(parts, {i - width})


def _is_one(code: Any, value: Any, char: str) -> bool:
    """Whether a part for one character means this one."""
    if code is codes.ANY:
        return char != "\n"
    if code is codes.NOT_LITERAL:
        return bool(ord(char) != value)
    is_negated = value[0][0] is codes.NEGATE
    return any(_is_in(kind, one, char) for kind, one in value) != is_negated


def _is_in(kind: Any, value: Any, char: str) -> bool:
    if kind is codes.LITERAL:
        return bool(ord(char) == value)
    if kind is codes.RANGE:
        return bool(value[0] <= ord(char) <= value[1])
    return kind is codes.CATEGORY and _CATEGORIES[value](char)
