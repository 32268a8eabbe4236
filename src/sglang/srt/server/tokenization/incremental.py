"""Bytes to text, piece by piece, as if all bytes had been decoded at once."""

from __future__ import annotations

import codecs

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
