"""Drafts from text that repeats itself: a request's own, and what other requests have said. Two proposers with one rule.

    own text     ... def area ( self ) : return self . w * ...  def area ( other ) : return
                                      ^ followed by  return self ...        ^ the same three tokens: "return" is expected

    another's    ... the capital of France is Paris , a city on the Seine
    this one's   ... and the capital of France is      expected: Paris, then "," ...

Prompt lookup: edited code, lists, tables, quotations and loops of small models are repetitive. A shared table, from n-grams to the token
that followed last, serves the requests of one salt and adapter: forks, batches and programs over many inputs say many things alike; so
does an answer that is generated again behind another prompt, which the prefix tree does not have.

The rule: every sampled token is compared with the expected one; after enough matches in a row, the following tokens are proposed.
That number doubles with every draft that fails, so text without repetition costs a search for a few tokens and no row.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from sglang.srt.scheduler.speculation.grammar_walk import draft_of
from sglang.srt.scheduler.speculation.proposer import Draft, DraftContext, DraftLimits

LOOKUP, TABLE = "prompt_lookup", "ngram_table"
"""names of the proposers"""
MIN_STREAK, MAX_STREAK = 2, 15
MAX_RUNNING, MAX_ROWS = 4, 16
"""Requests that run, and rows of a step, up to which reading the weights is most of the work: beyond that drafts do not pay."""
LOOKUP_WIDTH, TABLE_WIDTH = 3, 4
"""tokens that must be the same"""
WINDOW = 16384
"""how far back a request's own text is looked through"""
ID_BYTES = 4
NUM_PLACES = 1 << 16
"""of a table, each of 8 bytes"""
MAX_TABLES = 32
_CHECK_SHIFT, _CHECK_MASK = 32, (1 << 31) - 1
Ngram = tuple[int, ...]


class Streak:
    """Tokens in a row that came as expected."""

    __slots__ = ("_needed", "length")

    def __init__(self) -> None:
        self.length, self._needed = 0, MIN_STREAK

    @property
    def is_long(self) -> bool:
        """Whether a draft is likely to be right."""
        return self.length >= self._needed

    def note(self, is_right: bool) -> None:
        """Whether the next token was the expected one."""
        if self.is_long:
            self._needed = MIN_STREAK if is_right else min(2 * self._needed, MAX_STREAK)
        self.length = min(self.length + 1, MAX_STREAK) if is_right else 0


# --- a request's own text ---------------------------------------------------------------------------------------------------------


class PromptLookup:
    """Proposes the tokens that followed the latest earlier occurrence of a request's last tokens, in its own ids."""

    forced_share = 0.0

    def __init__(self, prompt_ids: Sequence[int], output_ids: Sequence[int] = ()) -> None:
        self._bytes = bytearray(np.asarray(prompt_ids, np.int32).tobytes())
        self._next = -1  # place of the expected token, negative: nothing is expected
        self._streak = Streak()
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
        return Draft(ids, list(range(1, len(ids) + 1)), [], LOOKUP) if ids else None

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        self.note(token_id)

    def note(self, token_id: int) -> None:
        """`token_id` is the next one."""
        new = token_id.to_bytes(ID_BYTES, "little", signed=True)
        at = self._next * ID_BYTES
        self._bytes += new
        is_right = self._next >= 0 and self._bytes[at : at + ID_BYTES] == new
        self._streak.note(is_right)
        if is_right:
            self._next += 1
        else:
            self._search()

    def expected(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come; none where too few came as expected."""
        if limit <= 0 or not self._is_on_track:
            return []
        begin = self._next * ID_BYTES
        end = begin + min(limit, self._streak.length) * ID_BYTES
        ids: list[int] = np.frombuffer(bytes(self._bytes[begin:end]), np.int32).tolist()
        return ids

    @property
    def _is_on_track(self) -> bool:
        return self._streak.is_long and self._next >= 0

    def _search(self) -> None:
        """The place after the latest earlier occurrence of the last tokens."""
        ids, self._next = self._bytes, -1
        if len(ids) <= LOOKUP_WIDTH * ID_BYTES:
            return
        last, end = bytes(ids[-LOOKUP_WIDTH * ID_BYTES :]), len(ids) - ID_BYTES
        first = max(0, len(ids) - WINDOW * ID_BYTES)
        while (at := ids.rfind(last, first, end)) >= 0:
            if at % ID_BYTES == 0:
                self._next = at // ID_BYTES + LOOKUP_WIDTH
                return
            end = at + len(last) - 1


# --- what others have said --------------------------------------------------------------------------------------------------------


class NgramTable:
    """A table of fixed size: an n-gram has one place, by its hash, and replaces what was there. Another part of the hash, stored beside
    it, tells n-grams of one place apart; should two be confused, a draft is wrong."""

    def __init__(self) -> None:
        self._checks = array("i", bytes(4 * NUM_PLACES))
        self._next = array("i", bytes(4 * NUM_PLACES))

    def note(self, ngram: Ngram, token_id: int) -> None:
        """`token_id` followed the n-gram."""
        value = hash(ngram)
        at = value % NUM_PLACES
        self._checks[at], self._next[at] = value >> _CHECK_SHIFT & _CHECK_MASK, token_id

    def after(self, ngram: Ngram) -> int:
        """The token that followed last; negative if none is known."""
        value = hash(ngram)
        at = value % NUM_PLACES
        return self._next[at] if self._checks[at] == value >> _CHECK_SHIFT & _CHECK_MASK else -1


class TableProposer:
    """Proposes for one request what its table says, and adds to that what the request says."""

    forced_share = 0.0

    def __init__(self, table: NgramTable, prompt_ids: Sequence[int]) -> None:
        self._table = table
        self._recent: Ngram = tuple(prompt_ids[-TABLE_WIDTH:])
        self._expected = table.after(self._recent)
        self._streak = Streak()
        self._num_noted = 0

    def is_confident(self, context: DraftContext, num_running: int) -> bool:
        """Whether the last tokens came as expected, and few requests run."""
        return num_running <= MAX_RUNNING and self._streak.is_long and self._expected >= 0

    def propose(self, context: DraftContext, limits: DraftLimits) -> Draft | None:
        """Drafts as many tokens as the last ones that came as expected."""
        self._catch_up(context)
        if not self._streak.is_long:
            return None
        limit = min(limits.max_ids, MAX_ROWS - limits.num_rows, self._streak.length)
        return draft_of(self._walk(limit), context, limits, TABLE)

    def note_sampled(self, context: DraftContext, token_id: int) -> None:
        self._catch_up(context)
        self._note(token_id)
        self._num_noted += 1

    def _walk(self, limit: int) -> list[int]:
        """At most so many tokens that are expected one after the other."""
        found: list[int] = []
        ngram, token_id = self._recent, self._expected
        while token_id >= 0 and len(found) < limit:
            found.append(token_id)
            ngram = (*ngram[1 - TABLE_WIDTH :], token_id)
            token_id = self._table.after(ngram)
        return found

    def _catch_up(self, context: DraftContext) -> None:
        """Notes what was appended without being told: forced tokens, and those that a resumed request began with."""
        output_ids = context.output_ids
        if self._num_noted != len(output_ids):
            for token_id in output_ids[self._num_noted :]:
                self._note(token_id)
            self._num_noted = len(output_ids)

    def _note(self, token_id: int) -> None:
        self._streak.note(token_id == self._expected)
        self._table.note(self._recent, token_id)
        self._recent = (*self._recent[1 - TABLE_WIDTH :], token_id)
        self._expected = self._table.after(self._recent)
