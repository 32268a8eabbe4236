r"""Translates Python's regular expressions to context-free grammars, for engines whose own regex dialect is underspecified.

    (Yes|No)[0-9]{2,}\.?      ->      root ::= ( ( "Yes" | "No" ) [0-9]{2,} "."? )

Python's parser reads the expression; every node of its tree has a counterpart here or is refused by name. As in
regex/syntax.py, whatever is generated satisfies `re.fullmatch`, and \d \w \s are the ASCII sets.
"""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.regex.tree import BEGINS, ENDS, codes, parse

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
Ranges = list[tuple[int, int]]

_SETS: dict[Any, Ranges] = {
    codes.CATEGORY_DIGIT: [(0x30, 0x39)],
    codes.CATEGORY_WORD: [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    codes.CATEGORY_SPACE: [(0x09, 0x0D), (0x20, 0x20)],
}
_NOT: dict[Any, Any] = {
    codes.CATEGORY_NOT_DIGIT: codes.CATEGORY_DIGIT,
    codes.CATEGORY_NOT_WORD: codes.CATEGORY_WORD,
    codes.CATEGORY_NOT_SPACE: codes.CATEGORY_SPACE,
}
_BEYOND = [(0x1C, 0x1F), (0x80, LAST)]
"""what shorthands may mean beyond their ASCII sets: Python's \\s has four control characters more"""


def to_ebnf(pattern: str) -> str:
    """A grammar in GBNF whose root is `pattern`. Raises GrammarError."""
    return "root ::= " + _write(pattern, plain=False)


def to_plain_regex(pattern: str) -> str:
    """`pattern` as an expression of literals, sets of ranges, groups and counts alone, for text inside JSON strings. Raises
    GrammarError, also where it could match what JSON escapes: quotes, backslashes and control characters."""
    return _write(pattern, plain=True)


def _write(pattern: str, plain: bool) -> str:
    tree = parse(pattern)
    try:
        return _Writer(tree.state.flags, plain).sequence(tree, True, True)
    except RecursionError as error:
        raise GrammarError("regex: nested too deeply", "regex") from error


class _Writer:
    """`plain`: writes regular expressions, else GBNF."""

    def __init__(self, flags: int, plain: bool) -> None:
        self._flags = flags
        self._plain = plain

    def sequence(self, items: Any, first: bool, last: bool) -> str:
        """`first`, `last`: whether the sequence begins and ends the expression, where anchors say nothing new."""
        items = list(items)
        parts = [
            self._node(op, value, first and not any(o is not codes.AT for o, _ in items[:i]), last and i == len(items) - 1)
            for i, (op, value) in enumerate(items)
        ]
        parts = [part for part in parts if part]
        return "".join(parts) if self._plain else " ".join(parts) or '""'

    def _node(self, op: Any, value: Any, first: bool, last: bool) -> str:
        if op is codes.LITERAL:
            return self._set(self._cases(value))
        if op is codes.NOT_LITERAL:
            return self._set(_complement(self._cases(value)))
        if op is codes.ANY:
            return self._set(_complement([] if self._flags & re.DOTALL else [(10, 10)]))
        if op is codes.IN:
            return self._set(self._class(value))
        if op is codes.BRANCH:
            return "(" + ("|" if self._plain else " | ").join(self.sequence(branch, first, last) for branch in value[1]) + ")"
        if op is codes.SUBPATTERN:
            return self._group(value, first, last)
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            return self._repeat(*value)
        if op is codes.AT:
            return self._anchor(value, first, last)
        raise GrammarError(f"regex: {str(op).lower().replace('_', ' ')} is not supported", "regex")

    def _group(self, value: Any, first: bool, last: bool) -> str:
        _, added, removed, inner = value
        before, self._flags = self._flags, (self._flags | added) & ~removed
        text = "(" + self.sequence(inner, first, last) + ")"
        self._flags = before
        return text

    def _repeat(self, low: int, high: Any, inner: Any) -> str:
        text = "(" + self.sequence(inner, False, False) + ")"
        if high is codes.MAXREPEAT:
            return text + {0: "*", 1: "+"}.get(low, f"{{{low},}}")
        if high == 0:
            return ""
        # xgrammar 0.2.6 to 0.2.9 read (x[0-9]+)? in a pattern of a schema as if its parts were optional one by one
        return text + ("?" if (low, high) == (0, 1) and not self._plain else f"{{{low},{high}}}")

    def _anchor(self, where: Any, first: bool, last: bool) -> str:
        if (where in BEGINS and first) or (where in ENDS and last):
            return ""
        raise GrammarError("regex: an anchor inside the expression, or a word boundary, is not supported", "regex")

    def _cases(self, code: int) -> Ranges:
        found = {code}
        if self._flags & re.IGNORECASE:
            found |= {ord(c) for c in (chr(code).lower(), chr(code).upper()) if len(c) == 1}
        return [(c, c) for c in sorted(found)]

    def _class(self, items: Any) -> Ranges:
        negated = items[0][0] is codes.NEGATE
        ranges: Ranges = []
        for op, value in items[1:] if negated else items:
            if op is codes.LITERAL:
                ranges += self._cases(value)
            elif op is codes.RANGE:
                ranges += self._range(*value)
            elif value in _SETS:  # what the shorthand may mean beyond ASCII is left out of sets, and of their complements
                ranges += _SETS[value] + (_BEYOND if negated else [])
            else:
                ranges += _complement(_SETS[_NOT[value]] + ([] if negated else _BEYOND))
        return _complement(ranges) if negated else _merged(ranges)

    def _range(self, low: int, high: int) -> Ranges:
        ranges = [(low, high)]
        if self._flags & re.IGNORECASE:
            for a, z, other in ((0x41, 0x5A, 32), (0x61, 0x7A, -32)):
                if max(low, a) <= min(high, z):
                    ranges.append((max(low, a) + other, min(high, z) + other))
        return ranges

    def _set(self, ranges: Ranges) -> str:
        if not ranges:
            raise GrammarError("regex: a set of characters is empty", "regex")
        if self._plain:
            if any(low < 0x20 or low <= 0x22 <= high or low <= 0x5C <= high for low, high in ranges):
                raise GrammarError("regex: it may match quotes, backslashes or control characters", "regex")
            return "[" + "".join(f"{_plain(a)}-{_plain(b)}" if a < b else _plain(a) for a, b in ranges) + "]"
        if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            return f'"{_escape(ranges[0][0])}"'
        return "[" + "".join(_escape(a) if a == b else f"{_escape(a)}-{_escape(b)}" for a, b in ranges) + "]"


def _merged(ranges: Ranges) -> Ranges:
    out: Ranges = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def _complement(ranges: Ranges) -> Ranges:
    """All other characters; surrogates do not count as characters."""
    out, at = [], 0
    for low, high in [*_merged([*ranges, SURROGATES]), (LAST + 1, LAST + 1)]:
        if at < low:
            out.append((at, low - 1))
        at = high + 1
    return out


def _escape(code: int) -> str:
    char = chr(code)
    return char if code < 128 and (char.isalnum() or char == " ") else f"\\U{code:08x}"


def _plain(code: int) -> str:
    char = chr(code)
    return char if code >= 128 or char.isalnum() or char == " " else "\\" + char
