"""Drafts from a request's own text: the tokens that followed an earlier occurrence of the same n-gram (prompt lookup).

    ids     ... def area ( self ) : return self . w * ...  def area ( other ) : return
                                 ^ followed by  return self ...        ^ the same three tokens: "return" is expected

Edited code, lists, tables, quotations and loops of small models are repetitive. Every sampled token is compared with the expected one;
after enough matches in a row, the following tokens are proposed. That number doubles with every miss, so text without repetition costs
a search for three tokens and no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits

NAME = "prompt_lookup"
WIDTH = 3
"""tokens that must be the same"""
WINDOW = 16384
"""how far back they are looked for"""
MIN_STREAK, MAX_STREAK = 2, 15
MAX_RUNNING, MAX_ROWS = 4, 16
"""Requests that run, and rows of a step, up to which reading the weights is most of the work: beyond that drafts do not pay."""
ID_BYTES = 4


class PromptLookup:
    """The ids of one request, and where among them what comes next may stand."""

    forced_share = 0.0

    def __init__(self, prompt_ids: Sequence[int], output_ids: Sequence[int] = ()) -> None:
        self._bytes = bytearray(np.asarray(prompt_ids, np.int32).tobytes())
        self._next = -1  # place of the expected token, negative: nothing is expected
        self._streak, self._needed = 0, MIN_STREAK
        self._search()
        for token_id in output_ids:
            self.note(token_id)

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        """Whether the last tokens came as expected, and few requests run."""
        return num_running <= MAX_RUNNING and self._is_on_track

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        """Drafts as many tokens as the last ones that came as expected."""
        stop_ids = context.stop_ids
        limit = min(limits.max_ids, limits.max_samples, MAX_ROWS - limits.num_rows)
        ids = list(takewhile(lambda token_id: token_id not in stop_ids, self.expected(limit)))
        return Draft(ids, list(range(1, len(ids) + 1)), [], NAME) if ids else None

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        self.note(token_id)

    def note(self, token_id: int) -> None:
        """`token_id` is the next one."""
        new = token_id.to_bytes(ID_BYTES, "little", signed=True)
        at = self._next * ID_BYTES
        self._bytes += new
        if self._next >= 0 and self._bytes[at : at + ID_BYTES] == new:
            if self._streak >= self._needed:
                self._needed = MIN_STREAK
            self._streak = min(self._streak + 1, MAX_STREAK)
            self._next += 1
        else:
            if self._streak >= self._needed:
                self._needed = min(2 * self._needed, MAX_STREAK)
            self._streak = 0
            self._search()

    def expected(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come; none where too few came as expected."""
        if limit <= 0 or not self._is_on_track:
            return []
        begin = self._next * ID_BYTES
        end = begin + min(limit, self._streak) * ID_BYTES
        ids: list[int] = np.frombuffer(bytes(self._bytes[begin:end]), np.int32).tolist()
        return ids

    @property
    def _is_on_track(self) -> bool:
        return self._streak >= self._needed and self._next >= 0

    def _search(self) -> None:
        """The place after the latest earlier occurrence of the last tokens."""
        ids, self._next = self._bytes, -1
        if len(ids) <= WIDTH * ID_BYTES:
            return
        last, end = bytes(ids[-WIDTH * ID_BYTES :]), len(ids) - ID_BYTES
        first = max(0, len(ids) - WINDOW * ID_BYTES)
        while (at := ids.rfind(last, first, end)) >= 0:
            if at % ID_BYTES == 0:
                self._next = at // ID_BYTES + WIDTH
                return
            end = at + len(last) - 1
