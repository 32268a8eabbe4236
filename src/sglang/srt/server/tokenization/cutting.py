"""Tokenizes long texts in pieces: during tokenization, a token takes hundreds of bytes (about 130 for each byte of emoji).

    ... a text of words | that goes on ...        a cut is between two words of the pre-tokenizer, and the text on either side has
                                                  the same ids alone as together

So the ids are those of the whole. Inside a single word of the pre-tokenizer (emoji, one repeated letter) no cut is possible, and words
longer than MAX_WORD are refused. Texts of tokenizers without a pre-tokenizer are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.errors import RequestError

PIECE_CHARS = 64 << 10
MAX_WORD = 192 << 10
"""bytes of the longest word, which then is a piece"""
WINDOW = 1024
"""characters that are searched at once"""
SIDES = (16, 64, 256)
"""characters on each side of a cut that are compared"""
MAX_TRIES = 16
"""cuts in one window"""


class Cutter:
    """`encode`: ids of a text, without any added before or after it."""

    def __init__(self, pre_tokenizer: Any, encode: Callable[[str], list[int]]) -> None:
        self._pre_tokenizer = pre_tokenizer
        self._encode = encode
        self._can_cut: bool | None = None

    def pieces(self, text: str) -> Iterator[str]:
        """Texts whose ids, one after the other, are those of the whole. Raises RequestError for a word that is too long."""
        at = 0
        while len(text) - at > PIECE_CHARS and self._cuts():
            cut = self._cut(text, at)
            if cut is None:
                break
            yield text[at:cut]
            at = cut
        yield text[at:]

    def _cuts(self) -> bool:
        if self._can_cut is None:
            self._can_cut = self._pre_tokenizer is not None and self._is_safe("some words, and more", 4)
        return self._can_cut

    def _cut(self, text: str, begin: int) -> int | None:
        """The last safe place within a piece, else the first one behind it."""
        ideal = begin + PIECE_CHARS
        for end in range(ideal, begin, -WINDOW):
            for at in reversed(self._ends_of_words(text, max(end - WINDOW, begin), end)):
                if self._is_safe(text, at):
                    return at
        for start in range(ideal, min(begin + MAX_WORD, len(text)), WINDOW):
            for at in self._ends_of_words(text, start, start + WINDOW):
                if self._is_safe(text, at):
                    _check_word(text[begin:at])
                    return at
        _check_word(text[begin:])
        return None

    def _ends_of_words(self, text: str, begin: int, end: int) -> list[int]:
        """The places between words, some of them if they are many."""
        words = self._pre_tokenizer.pre_tokenize_str(text[begin:end])
        ends = [begin + stop for _, (_, stop) in words[:-1]]
        return ends[:: max(len(ends) // MAX_TRIES, 1)]

    def _is_safe(self, text: str, at: int) -> bool:
        for side in SIDES:
            left, right = text[max(at - side, 0) : at], text[at : at + side]
            if not left or not right or self._encode(left + right) != self._encode(left) + self._encode(right):
                return False
        return True


def _check_word(text: str) -> None:
    if len(text) > MAX_WORD or len(text.encode(errors="replace")) > MAX_WORD:
        raise RequestError(f"the text has a word of more than {MAX_WORD} bytes, as the model's tokenizer sees it", "text")
