"""Values that outputs copy from their prompts, learnt by what stands around them there.

    prompt 1    ... a person like Alice, number 7, as JSON      output    {"name":"Alice","age":7,"city": ...
    prompt 2    ... a person like Bob, number 8, as JSON        expected  {"name":"  Bob "," ... age":  8 , ...

At the place of the output that `"name":"` leads to, the value stood between "on like " and ",": so it is looked for there in the
next prompt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from sglang.srt.vocabulary import Vocabulary

BEFORE, AFTER = 8, 1
"""Bytes around a value by which it is found again."""
MAX_VALUE = 96
"""Bytes, or tokens."""
MAX_LEAD, MAX_TRAIL = 2, 1
"""Tokens around a value in an output."""
MAX_PROMPT = 2048
"""Tokens at the end of a prompt in which values are looked for."""
PLACE = 3
"""Tokens before a value that say which it is."""
MAX_PLACES = 2048
FADE = 15 / 16
WEAK = 0.3


class Source(NamedTuple):
    """What stands around a value in a prompt, and the tokens that are drawn around it in an output: quotation marks and the like,
    where they are not forced."""

    before: bytes
    after: bytes
    lead: tuple[int, ...]
    trail: tuple[int, ...]


class Quote(NamedTuple):
    """Tokens that are expected to be drawn: how likely the whole is, and how likely the first of them is, given what came before."""

    ids: list[int]
    trust: float
    next_trust: float

    def after(self, token_id: int) -> Quote:
        """What is left when `token_id` was drawn: nothing, unless it was expected. Who begins to copy goes on to the end."""
        return Quote(self.ids[1:], self.trust, 1.0) if self.ids and self.ids[0] == token_id else NOTHING


NOTHING = Quote([], 0.0, 0.0)


@dataclass
class Record:
    """A source, and how many of the values that it told of late were right."""

    source: Source
    right: float = 1.0
    told: float = 1.0

    @property
    def trust(self) -> float:
        """How likely the next one is right: nothing is certain, and once is no rule."""
        return self.right / (self.told + 1.0) if self.told > 1.0 else 0.0

    def note(self, is_right: bool) -> None:
        self.right = self.right * FADE + is_right
        self.told = self.told * FADE + 1.0


class Quotes:
    """What was learnt from requests of one grammar: records by the last tokens before a value."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Record] = {}

    def get(self, before: list[int]) -> Record | None:
        return self._known.get(tuple(before[-PLACE:]))

    def put(self, before: list[int], source: Source | None) -> None:
        """A new source, or none any more."""
        place = tuple(before[-PLACE:])
        if source is None:
            self._known.pop(place, None)
            return
        if len(self._known) >= MAX_PLACES:
            self._known.clear()
        self._known[place] = Record(source)


class Quoting:
    """One request's prompt, in which values of its output are looked for. `encode`: the canonical tokens of a text."""

    def __init__(
        self, quotes: Quotes, prompt_ids: list[int], vocabulary: Vocabulary, encode: Callable[[str], list[int]]
    ) -> None:
        self._quotes = quotes
        self._vocabulary = vocabulary
        self._encode = encode
        self._ids = prompt_ids[-MAX_PROMPT:]
        table, size = vocabulary.token_bytes, vocabulary.size
        pieces = [table[i] if i < size else b"" for i in self._ids]
        self._starts = [0, *accumulate(map(len, pieces))]
        self._text = b"".join(pieces)
        self._found: dict[Source, list[int]] = {}

    def begin(self, before: list[int]) -> Quote:
        """What may be drawn after `before`, where a value begins."""
        record = self._quotes.get(before)
        return Quote(self._find(record.source), record.trust, record.trust) if record is not None else NOTHING

    def go_on(self, output_ids: list[int], num_drawn: int) -> Quote:
        """What may be drawn after an output whose last `num_drawn` tokens are the beginning of a value."""
        at = len(output_ids) - num_drawn
        quote = self.begin(output_ids[max(at - PLACE, 0) : at])
        if len(quote.ids) <= num_drawn or quote.ids[:num_drawn] != output_ids[at:]:
            return NOTHING
        return Quote(quote.ids[num_drawn:], quote.trust, quote.next_trust)

    def note(self, output_ids: list[int], num_drawn: int) -> None:
        """The last `num_drawn` tokens are a value, with or without the token that ends it."""
        if num_drawn > MAX_VALUE:  # a text, or thoughts
            return
        at = len(output_ids) - num_drawn
        before, drawn = output_ids[max(at - PLACE, 0) : at], output_ids[at:]
        record = self._quotes.get(before)
        if record is not None:
            record.note(self._find(record.source) == drawn)
        if record is None or record.trust < WEAK:
            self._quotes.put(before, self._locate(drawn))

    def _find(self, source: Source) -> list[int]:
        """The tokens of the value at its `source`; empty when there is nothing of the kind."""
        if source not in self._found:
            ids = self._tokens(*self._between(source.before, source.after))
            self._found[source] = [*source.lead, *ids, *source.trail] if ids else []
        return self._found[source]

    def _between(self, before: bytes, after: bytes) -> tuple[int, int]:
        """Where the value stands; nowhere, if the two are equal."""
        start = self._text.rfind(before) + len(before)
        if start < len(before):
            return 0, 0
        end = self._text.find(after, start, start + MAX_VALUE + AFTER) if after else len(self._text)
        return (start, end) if start < end <= start + MAX_VALUE else (0, 0)

    def _tokens(self, start: int, end: int) -> list[int]:
        """The prompt's own tokens, which a model goes by, and those of the text where it begins or ends inside one."""
        ids: list[int] = []
        at = bisect_right(self._starts, start) - 1
        while start < end:
            stop = min(self._starts[at + 1], end)
            whole = (start, stop) == (self._starts[at], self._starts[at + 1])
            ids += [self._ids[at]] if whole else self._encode(self._text[start:stop].decode(errors="replace"))
            start, at = stop, at + 1
        return ids

    def _locate(self, drawn: list[int]) -> Source | None:
        """The source that would have told `drawn`."""
        for start in range(min(MAX_LEAD + 1, len(drawn))):
            for stop in range(len(drawn), max(len(drawn) - MAX_TRAIL - 1, start), -1):
                value = self._vocabulary.text_bytes(drawn[start:stop])
                at = self._text.rfind(value) if value else -1
                if at <= 0:
                    continue
                end = at + len(value)
                around = self._text[max(at - BEFORE, 0) : at], self._text[end : end + AFTER]
                source = Source(*around, tuple(drawn[:start]), tuple(drawn[stop:]))
                if self._find(source) == drawn:
                    return source
        return None
