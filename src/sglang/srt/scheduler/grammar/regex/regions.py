r"""Which of several regular expressions a text matches, said by one expression for each answer.

    ^x, ^[a-z]$   ->   only the first: ^x[\s\S]+$      only the second: ^[a-wyz]$      both: ^x$

Expressions are searched for, as in JSON Schema. Each becomes an automaton over the characters between two marks, the beginning and the
end, so that ^ and $ are read like characters. They are run together; where the same of them match, states are one language, which is
written down by taking states out one after the other (Kleene 1956; Hopcroft and Ullman, Introduction to Automata Theory, 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.regex.tree import BEGINS, ENDS, codes, parse

MAX_STATES = 64
"""of all automata together"""
MAX_REPEATS = 40
MAX_NODES = 600
MAX_TEXT = 3000
"""characters of an expression"""
LAST = 0x10FFFF
BEGIN, END = LAST + 1, LAST + 2
"""the marks around a text, as if they were characters"""
Ranges = tuple[tuple[int, int], ...]
State = tuple[frozenset[int], ...]
"""where each of several automata is"""
_DIGITS: Ranges = ((48, 57),)
_WORDS: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACES: Ranges = ((9, 13), (32, 32))
_ALL: Ranges = ((0, LAST),)
_BLANKS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


class _NotWritten(Exception):  # noqa: N818  no error: there is another way to go on
    """Raised for a pattern that is too large, or has no automaton."""


def regions(patterns: Iterable[str]) -> dict[frozenset[int], str] | None:
    """An expression for each subset of `patterns` that some text matches without matching the others. It matches exactly these
    texts. None where one cannot be written."""
    return _regions(tuple(patterns))


@lru_cache(maxsize=256)
def _regions(patterns: tuple[str, ...]) -> dict[frozenset[int], str] | None:
    try:
        together = _Together([_Automaton(pattern) for pattern in patterns])
        found = {which: together.written(which) for which in sorted(together.outcomes, key=sorted)}
    except _NotWritten:
        return None
    return found


# --- one expression ---------------------------------------------------------------------------------------------------------


class _Automaton:
    """Nodes are numbers; `steps` lead on by a character, `jumps` without one. Node 0 is the beginning, `last` the end."""

    def __init__(self, pattern: str) -> None:
        self.steps: list[list[tuple[Ranges, int]]] = []
        self.jumps: list[list[int]] = []
        try:
            tree = parse(pattern)
        except GrammarError as error:
            raise _NotWritten from error
        if tree.state.flags & ~re.UNICODE:
            raise _NotWritten
        start, before, body = self._node(), self._node(), self._node()
        self.jumps[start].append(body)
        self.steps[start].append((((BEGIN, BEGIN),), before))
        self.steps[before].append((_ALL, before))
        self.jumps[before].append(body)
        after = self._sequence(tree, body)
        self.last = self._node()
        rest = self._node()
        self.jumps[after] += [rest, self.last]
        self.steps[rest] += [(_ALL, rest), (((END, END),), self.last)]

    def _node(self) -> int:
        if len(self.steps) >= MAX_NODES:
            raise _NotWritten
        self.steps.append([])
        self.jumps.append([])
        return len(self.steps) - 1

    def _sequence(self, items: Any, at: int) -> int:
        for op, value in items:
            at = self._item(op, value, at)
        return at

    def _item(self, op: Any, value: Any, at: int) -> int:
        """Adds one part behind node `at`. Returns where it ends."""
        if op is codes.SUBPATTERN and not value[1] and not value[2]:
            return self._sequence(value[3], at)
        if op is codes.BRANCH:
            end = self._node()
            for branch in value[1]:
                self.jumps[self._sequence(branch, at)].append(end)
            return end
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            low, high, inner = value
            return self._repeat(at, low, high, inner)
        end = self._node()
        self.steps[at].append((_ranges(op, value), end))
        return end

    def _repeat(self, at: int, low: int, high: int, inner: Any) -> int:
        is_open = high is codes.MAXREPEAT
        if low > MAX_REPEATS or (not is_open and high > MAX_REPEATS):
            raise _NotWritten
        for _ in range(low):
            at = self._sequence(inner, at)
        end = self._node()
        self.jumps[at].append(end)
        if is_open:
            self.jumps[self._sequence(inner, end)].append(end)
            return end
        for _ in range(high - low):
            at = self._sequence(inner, at)
            self.jumps[at].append(end)
        return end

    def closed(self, nodes: Iterable[int]) -> frozenset[int]:
        """These states and all that jumps lead to from them."""
        found, queue = set(), list(nodes)
        while queue:
            node = queue.pop()
            if node not in found:
                found.add(node)
                queue += self.jumps[node]
        return frozenset(found)

    def after(self, nodes: frozenset[int], code: int) -> frozenset[int]:
        """The states after one character."""
        steps = (step for node in nodes for step in self.steps[node])
        return self.closed(target for ranges, target in steps if any(low <= code <= high for low, high in ranges))


def _ranges(op: Any, value: Any) -> Ranges:
    """The characters, or the mark, that one part of an expression takes."""
    if op is codes.AT and value in BEGINS:
        return ((BEGIN, BEGIN),)
    if op is codes.AT and value in ENDS:
        return ((END, END),)
    if op is codes.LITERAL:
        return ((value, value),)
    if op is codes.NOT_LITERAL:
        return _others(((value, value),))
    if op is codes.ANY:
        return _others(((10, 10),))
    if op is codes.IN:
        is_negated = value[0][0] is codes.NEGATE
        members = _joined([_member(kind, inner) for kind, inner in value[is_negated:]])
        return _others(members) if is_negated else members
    raise _NotWritten


def _member(kind: Any, value: Any) -> Ranges:
    if kind is codes.LITERAL:
        return ((value, value),)
    if kind is codes.RANGE:
        return ((value[0], value[1]),)
    named = {codes.CATEGORY_DIGIT: _DIGITS, codes.CATEGORY_WORD: _WORDS, codes.CATEGORY_SPACE: _SPACES}
    negated = {codes.CATEGORY_NOT_DIGIT: _DIGITS, codes.CATEGORY_NOT_WORD: _WORDS, codes.CATEGORY_NOT_SPACE: _SPACES}
    if kind is codes.CATEGORY and value in named:
        return named[value]
    if kind is codes.CATEGORY and value in negated:
        return _others(negated[value])
    raise _NotWritten


def _joined(parts: Iterable[Ranges]) -> Ranges:
    """The ranges of all parts in order, without overlaps."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(one for part in parts for one in part):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def _others(ranges: Ranges) -> Ranges:
    edges = [-1, *(edge for one in ranges for edge in one), LAST + 1]
    return tuple((before + 1, after - 1) for before, after in zip(edges[::2], edges[1::2], strict=True) if after - before > 1)


# --- all together -----------------------------------------------------------------------------------------------------------


class _Together:
    """All automata at once. `_ways[i][j]`: the characters that lead from state i to j. `_matched[i]`: which expressions a text matches
    that ends there."""

    def __init__(self, automata: list[_Automaton]) -> None:
        self._automata = automata
        edges = {0, LAST + 1}
        for automaton in automata:
            for ranges, _ in (step for steps in automaton.steps for step in steps):
                edges.update(edge for low, high in ranges if high <= LAST for edge in (low, high + 1))
        self._pieces = [(low, high - 1) for low, high in pairwise(sorted(edges))]
        start = tuple(automaton.after(automaton.closed([0]), BEGIN) for automaton in automata)
        self._states = [start]
        self._known = {start: 0}
        self._ways: list[dict[int, Ranges]] = []
        self._matched: list[frozenset[int]] = []
        for state in self._states:  # grows while it is read
            self._add(state)
        self.outcomes = set(self._matched) - {frozenset()}

    def _add(self, state: State) -> None:
        ways: dict[int, list[tuple[int, int]]] = {}
        for piece in self._pieces:
            target = tuple(one.after(nodes, piece[0]) for one, nodes in zip(self._automata, state, strict=True))
            if target not in self._known:
                self._known[target] = len(self._states)
                self._states.append(target)
            ways.setdefault(self._known[target], []).append(piece)
        if len(self._states) > MAX_STATES:
            raise _NotWritten
        self._ways.append({target: _joined([tuple(pieces)]) for target, pieces in ways.items()})
        ends = (one.last in one.after(nodes, END) for one, nodes in zip(self._automata, state, strict=True))
        self._matched.append(frozenset(i for i, is_match in enumerate(ends) if is_match))

    def written(self, which: frozenset[int]) -> str:
        """An expression for the texts that match exactly these."""
        final = len(self._ways)
        texts: dict[int, dict[int, str]] = {
            i: {j: _in_class(ranges) for j, ranges in ways.items()} for i, ways in enumerate(self._ways)
        }
        for i, matched in enumerate(self._matched):
            if matched == which:
                texts[i][final] = ""
        texts[-1] = {0: ""}
        left = set(range(final))
        while left:
            state = min(left, key=lambda i: (sum(i in ways for ways in texts.values()) * len(texts[i]), i))
            left.discard(state)
            _take_out(texts, state)
        return f"^(?:{texts[-1][final]})$"


def _take_out(texts: dict[int, dict[int, str]], state: int) -> None:
    """Leads past a state what led through it."""
    ways = texts.pop(state)
    loop = ways.pop(state, None)
    again = "" if loop is None else f"(?:{loop})*"
    for targets in texts.values():
        before = targets.pop(state, None)
        for target, behind in ways.items() if before is not None else ():
            way = f"{_grouped(before or '')}{again}{_grouped(behind)}"
            if len(way) > MAX_TEXT:
                raise _NotWritten
            other = targets.get(target)
            targets[target] = way if other is None or other == way else f"{other}|{way}"


def _grouped(text: str) -> str:
    return f"(?:{text})" if "|" in text else text


def _in_class(ranges: Ranges) -> str:
    """A class of characters. One that has what no expression names is written by what it has not."""
    if ranges == _ALL:
        return r"[\s\S]"
    is_negated = ranges[0][0] == 0
    members = _others(ranges) if is_negated else ranges
    text = "".join(_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in members)
    return f"[{'^' if is_negated else ''}{text}]"


def _char(code: int) -> str:
    char = chr(code)
    if char in _BLANKS:
        return _BLANKS[char]
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\{char}" if char in r"\]^-[&~|" else char
