"""Assigns the log probabilities of an answer's tokens to the texts that the tokens make.

    tokens   <think> h m </think> Yes . <eos>
    texts            hm           Yes.           each is looked for behind the one before it

A token is assigned once, to the text in which it begins; tokens between two texts, and the end token, to none.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

from sglang.srt.messages import Logprobs, Position

Entry = dict[str, Any]


class TextLogprobs:
    """`token_bytes`: of a token. `make`: entries of positions, as the API has them."""

    def __init__(self, token_bytes: Callable[[int], bytes], make: Callable[[Iterable[Position]], Iterable[Entry]]) -> None:
        self._token_bytes = token_bytes
        self._make = make
        self._bytes = bytearray()
        self._ends: list[int] = []
        """of each token, in the bytes of all"""
        self._at = 0
        self._packed: deque[Logprobs] = deque()
        self._num_gone = 0
        """positions that `_packed` holds no more"""
        self._num_given = 0

    @property
    def num_waiting(self) -> int:
        """Positions that may be given yet."""
        return len(self._ends) - self._num_given

    def add(self, logprobs: Logprobs | None) -> None:
        """Adds the log probabilities of the next tokens."""
        if logprobs is None or not len(logprobs):
            return
        self._packed.append(logprobs)
        for _, token_id in logprobs.chosen():
            self._bytes += self._token_bytes(token_id)
            self._ends.append(len(self._bytes))

    def take(self, text: str) -> list[Entry]:
        """Takes the log probabilities of a text, which follows all earlier texts; none if the text is not made of the tokens'
        bytes."""
        data = text.encode(errors="replace")
        begin = self._bytes.find(data, self._at)
        if begin < 0 or not data:
            return []
        self._at = end = begin + len(data)
        first = max(bisect_right(self._ends, begin), self._num_given)
        last = max(min(bisect_left(self._ends, end) + 1, len(self._ends)), first)
        positions = islice(chain.from_iterable(self._packed), first - self._num_gone, last - self._num_gone)
        entries = list(self._make(positions))
        self._num_given = last
        while self._packed and self._num_gone + len(self._packed[0]) <= last:
            self._num_gone += len(self._packed.popleft())
        return entries
