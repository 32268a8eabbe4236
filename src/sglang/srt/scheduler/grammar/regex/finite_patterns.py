"""Lists the words of a regular expression that matches only a few.

^(width|height)$   ->   width, height
"""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.regex.tree import BEGINS, ENDS, codes, parse

MAX_WORDS = 256


def matched_words(pattern: str) -> list[str] | None:
    """All texts in which `pattern` is found, if it is anchored at both ends and these are few; else None."""
    try:
        tree = list(parse(pattern))
    except GrammarError:
        return None
    if len(tree) < 2 or tree[0][0] is not codes.AT or tree[0][1] not in BEGINS:
        return None
    if tree[-1][0] is not codes.AT or tree[-1][1] not in ENDS or re.compile(pattern).flags & ~re.UNICODE:
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
