"""Regular expressions that match a few words and nothing else, as a list of these.

^(width|height)$   ->   width, height
"""

from __future__ import annotations

import re
import sys
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

MAX_WORDS = 256
_BEGINS = (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING)
_ENDS = (codes.AT_END, codes.AT_END_STRING)


def matched_words(pattern: str) -> list[str] | None:
    """All texts in which `pattern` is found, if it is anchored at both ends and these are few; else None."""
    try:
        parsed: Any = parser.parse(pattern)
        tree = list(parsed)
    except (re.error, OverflowError, RecursionError):
        return None
    if len(tree) < 2 or tree[0][0] is not codes.AT or tree[0][1] not in _BEGINS:
        return None
    if tree[-1][0] is not codes.AT or tree[-1][1] not in _ENDS or re.compile(pattern).flags & ~re.UNICODE:
        return None
    words = _sequence(tree[1:-1])
    return None if words is None else list(dict.fromkeys(words))


def _sequence(items: Any) -> list[str] | None:
    words = [""]
    for op, value in items:
        pieces = _pieces(op, value)
        if pieces is None or len(words) * len(pieces) > MAX_WORDS:
            return None
        words = [word + piece for word in words for piece in pieces]
    return words


def _pieces(op: Any, value: Any) -> list[str] | None:
    if op is codes.LITERAL:
        return [chr(value)]
    if op is codes.SUBPATTERN:
        return _sequence(value[3])
    if op is codes.BRANCH:
        return _joined([_sequence(branch) for branch in value[1]])
    if op is codes.IN:
        return _joined([_characters(kind, inner) for kind, inner in value])
    if op is codes.MAX_REPEAT:
        low, high, inner = value
        if high is codes.MAXREPEAT or high > MAX_WORDS:
            return None
        return _joined([_sequence(list(inner) * n) for n in range(low, high + 1)])
    return None


def _characters(kind: Any, value: Any) -> list[str] | None:
    if kind is codes.LITERAL:
        return [chr(value)]
    if kind is codes.RANGE and value[1] - value[0] < MAX_WORDS:
        return [chr(code) for code in range(value[0], value[1] + 1)]
    return None


def _joined(parts: list[list[str] | None]) -> list[str] | None:
    words = [word for part in parts if part is not None for word in part]
    return None if None in parts or len(words) > MAX_WORDS else words
