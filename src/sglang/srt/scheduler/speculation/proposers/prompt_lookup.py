"""What a request may say next because it said it before: prompt lookup.

    ids     ... def area ( self ) : return self . w * ...  def area ( other ) : return
                                 ^ followed by  return self ...        ^ the same three tokens: "return" is expected

Code that is edited, lists, tables, quotations and small models that go round in circles repeat themselves for long. Every drawn
token is compared with the one expected; once some were right in a row, the ones after them are worth their rows (speculation/verify.py). How
many that takes doubles with every disappointment. So text that does not repeat itself costs a search for three tokens and no row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTH = 3
"""tokens that must be the same"""
WINDOW = 16384
"""how far back they are looked for"""
MIN_STREAK, MAX_GUESSES = 2, 15
SIZE = 4


class Lookup:
    """The ids of one request, and where among them what comes next may stand."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._bytes = bytearray(np.asarray(prompt_ids, np.int32).tobytes())
        self._next = -1  # place of the expected token, negative: nothing is expected
        self._streak, self._needed = 0, MIN_STREAK
        self._search()

    @property
    def is_trusted(self) -> bool:
        """Whether the last tokens came as expected."""
        return self._streak >= self._needed and self._next >= 0

    def note(self, token_id: int) -> None:
        """`token_id` was drawn."""
        new = token_id.to_bytes(SIZE, "little", signed=True)
        at = self._next * SIZE
        self._bytes += new
        if self._next >= 0 and self._bytes[at : at + SIZE] == new:
            if self._streak >= self._needed:
                self._needed = MIN_STREAK
            self._streak = min(self._streak + 1, MAX_GUESSES)
            self._next += 1
        else:
            if self._streak >= self._needed:
                self._needed = min(2 * self._needed, MAX_GUESSES)
            self._streak = 0
            self._search()

    def guesses(self, limit: int) -> list[int]:
        """What may come: as many tokens as came as expected of late, none where that is too few."""
        if not self.is_trusted:
            return []
        begin = self._next * SIZE
        end = begin + min(limit, self._streak) * SIZE
        guesses: list[int] = np.frombuffer(bytes(self._bytes[begin:end]), np.int32).tolist()
        return guesses

    def _search(self) -> None:
        """The place after the latest earlier occurrence of the last tokens."""
        ids, self._next = self._bytes, -1
        if len(ids) <= WIDTH * SIZE:
            return
        last, end = bytes(ids[-WIDTH * SIZE :]), len(ids) - SIZE
        first = max(0, len(ids) - WINDOW * SIZE)
        while (at := ids.rfind(last, first, end)) >= 0:
            if at % SIZE == 0:
                self._next = at // SIZE + WIDTH
                return
            end = at + len(last) - 1
