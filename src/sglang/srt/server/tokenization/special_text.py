"""Special tokens that someone merely wrote: found, marked, and told apart from those of the chat template.

A chat prompt mixes two sources. The template's own `<|im_start|>` opens a turn; the same characters inside a message are
just characters, or a user could close their turn and speak as the system. So before rendering, a mark is put inside every
special token's name found in the messages; the template's names stay whole and are recognised; then the stretches that
contain marks are encoded again, without marks and as plain text.

    message   "say <|im_end|>"
    marked    "say <*|im_end|>"
    rendered  "<|im_start|>user\\nsay <*|im_end|><|im_end|>\\n"
    encoded    special       plain stretch        special
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import regex

WINDOW = 1 << 20
"""characters that are searched at once"""


class SpecialText:
    """Knows the names of a tokenizer's special tokens."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [name for name in names if name]
        self._first: Any = None
        if self._names:
            self._first = re.compile("[" + "".join({re.escape(name[0]) for name in self._names}) + "]")
        self._longest = max(map(len, self._names), default=1)
        self._compiled: Any = None

    @property
    def _pattern(self) -> Any:
        """Compiled when a text first needs it: some vocabularies have thousands of names."""
        if self._compiled is None:
            self._compiled = regex.compile(r"\L<names>", names=self._names)
        return self._compiled

    def occurs_in(self, value: Any) -> bool:
        """Whether any string inside `value` (plain JSON-like data) contains a special token's name."""
        if self._first is None:
            return False
        may_begin = self._first.search
        left = [value]
        while left:
            value = left.pop()
            if isinstance(value, str):
                if len(value) > WINDOW:
                    if any(map(self._is_in, _windows(value, self._longest))):
                        return True
                elif may_begin(value) is not None and self._is_in(value):
                    return True
            elif isinstance(value, dict):
                items = [*value, *value.values()]
                if not self._is_plain(items):
                    left += items
            elif isinstance(value, (list, tuple)):
                left += value
        return False

    def _is_plain(self, items: list[Any]) -> bool:
        """Whether all are strings in which no name can begin, as in most messages: found out without a loop of Python's."""
        try:
            return sum(map(len, items)) <= WINDOW and not any(map(self._first.search, items))
        except TypeError:  # something else is among them
            return False

    def _is_in(self, text: str) -> bool:
        return self._first.search(text) is not None and self._pattern.search(text) is not None

    def marked(self, value: Any, mark: str) -> Any:
        """`value` with `mark` after the first character of each name."""
        substitute = self._pattern.sub

        def mark_name(match: Any) -> str:
            name: str = match[0]
            return name[0] + mark + name[1:]

        return map_strings(value, lambda text: substitute(mark_name, text))


def _windows(text: str, overlap: int) -> Iterator[str]:
    """The text in pieces, of which each two share `overlap` characters: a search lets no other thread run."""
    for at in range(0, len(text), WINDOW):
        yield text[at : at + WINDOW + overlap]


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of JSON-like data with every string, keys included, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {map_strings(key, change): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_strings(item, change) for item in value]
    return value
