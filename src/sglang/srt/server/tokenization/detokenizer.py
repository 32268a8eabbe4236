"""Converts the tokens of one request to the text that its client sees.

    ids -> token bytes -> held back while a stop string may begin -> cut at the end by what stopped it -> whole characters

The scheduler finds stop strings, on the same bytes; here they are only removed.
"""

from __future__ import annotations

import codecs
from itertools import filterfalse

from sglang.srt.messages import TokenOut
from sglang.srt.vocabulary import SpecialSpacing, Vocabulary

_DECODER = codecs.getincrementaldecoder("utf-8")


class IncrementalText:
    """Never gives out half a character. Bytes that are not UTF-8 become U+FFFD where a whole-text decode puts it."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = _DECODER("replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self, data: bytes = b"") -> str:
        """The rest; a character cut short by the end is U+FFFD."""
        return self._decoder.decode(data, True)


class Detokenizer:
    """Owns the text state of one request. The pieces that `feed` returns concatenate to the request's whole text."""

    __slots__ = ("_drop", "_skip", "_spacing", "_table", "_text", "_unsaid")

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool, drop: int = 0, spaced: bool = False) -> None:
        """`drop`: bytes at the beginning that are not shown. `spaced`: blanks stand around special tokens."""
        self._drop = drop
        self._spacing = SpecialSpacing(vocabulary.special_ids) if spaced else None
        self._table = vocabulary.token_bytes
        self._skip: frozenset[int] = vocabulary.special_ids if skip_special_tokens else frozenset()
        self._text = IncrementalText()
        self._unsaid = b""

    def feed(self, out: TokenOut) -> str:
        """The text that `out` makes certain."""
        fresh = self._bytes_of(out.ids)
        if self._drop:
            dropped = min(self._drop, len(fresh))
            self._drop, fresh = self._drop - dropped, fresh[dropped:]
        data = self._unsaid + fresh
        if out.finish is not None:
            self._unsaid = b""
            return self._text.finish(data[: max(len(data) - out.trim_bytes, 0)] if out.trim_bytes else data)
        if out.hold_bytes:
            certain = max(len(data) - out.hold_bytes, 0)
            self._unsaid = data[certain:]
            data = data[:certain]
        else:
            self._unsaid = b""
        return self._text.push(data)

    def _bytes_of(self, ids: list[int]) -> bytes:
        """The bytes to show: without skipped special tokens and ids outside the vocabulary."""
        if len(ids) == 1 and self._spacing is None:  # a stream's chunk, as most are
            i = ids[0]
            return self._table[i] if 0 <= i < len(self._table) and i not in self._skip else b""
        table, skip, size = self._table, self._skip, len(self._table)
        if self._spacing is not None:
            return b"".join([self._spacing.note(i) + table[i] for i in ids if 0 <= i < size])
        if not skip.isdisjoint(ids):
            ids = list(filterfalse(skip.__contains__, ids))
        if ids and (min(ids) < 0 or max(ids) >= size):
            ids = [i for i in ids if 0 <= i < size]
        return b"".join(map(table.__getitem__, ids))
