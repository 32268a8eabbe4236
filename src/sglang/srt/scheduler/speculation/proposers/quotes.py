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
FADE = 31 / 32
WEAK = 0.3
BEGUN = 0.9
"""How likely a value that began as expected goes on so."""


class Source(NamedTuple):
    """What stands around a value in a prompt, and the tokens that are drawn around it in an output: quotation marks and the like,
    where they are not forced."""

    before: bytes
    after: bytes
    lead: tuple[int, ...]
    trail: tuple[int, ...]


class Quote(NamedTuple):
    """Tokens that are expected to be drawn, and how likely that is. The first `lead` of them stand before the value."""

    ids: list[int]
    trust: float
    lead: int

    @property
    def next_trust(self) -> float:
        """How likely the next one is, if those before came: who begins to copy goes on to the end."""
        return self.trust if self.lead == 0 else 1.0

    def after(self, token_id: int) -> Quote:
        """What is left when `token_id` was drawn: nothing, unless it was expected."""
        return Quote(self.ids[1:], self.trust, self.lead - 1) if self.ids and self.ids[0] == token_id else NOTHING


NOTHING = Quote([], 0.0, 0)


@dataclass
class Record:
    """A source, and how many of the values that it told of late were right."""

    source: Source
    right: float = 1.0
    told: float = 1.0

    @property
    def trust(self) -> float:
        """How likely the next one is right: nothing is certain, and once is no rule."""
        return self.right / (self.told + 0.5) if self.told > 1.0 else 0.0

    def note(self, is_right: bool) -> None:
        self.right = self.right * FADE + is_right
        self.told = self.told * FADE + 1.0


class Quotes:
    """What was learnt from requests of one grammar: records by the last tokens before a value, and values that the model said in
    other tokens than expected. Small and forgetful, as habits are."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Record] = {}
        self._spelled: dict[tuple[int, ...], list[int]] = {}

    def spell(self, ids: list[int]) -> list[int]:
        """The model's own tokens for the text of `ids`, as far as they are known."""
        return self._spelled.get(tuple(ids), ids)

    def note_spelling(self, ids: list[int], drawn: list[int]) -> None:
        if len(self._spelled) >= MAX_PLACES:
            self._spelled.clear()
        self._spelled[tuple(ids)] = drawn

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
        self._plain: dict[Source, list[int]] = {}  # as in the prompt
        self._found: dict[Source, list[int]] = {}  # as the model says it

    def begin(self, before: list[int]) -> Quote:
        """What may be drawn after `before`, where a value begins."""
        record = self._quotes.get(before)
        if record is None or not record.trust:
            return NOTHING
        return Quote(self._find(record.source), record.trust, len(record.source.lead))

    def go_on(self, output_ids: list[int], num_drawn: int) -> Quote:
        """What may be drawn after an output whose last `num_drawn` tokens are the beginning of a value. Once a token of the value
        itself came as expected, the others are likely."""
        at = len(output_ids) - num_drawn
        record = self._quotes.get(output_ids[max(at - PLACE, 0) : at])
        if record is None:
            return NOTHING
        ids, lead = self._find(record.source), len(record.source.lead) - num_drawn
        if len(ids) <= num_drawn or ids[:num_drawn] != output_ids[at:]:
            return NOTHING
        trust = max(record.trust, BEGUN) if lead < 0 else record.trust
        return Quote(ids[num_drawn:], trust, lead) if trust else NOTHING

    def note(self, output_ids: list[int], num_drawn: int) -> None:
        """The last `num_drawn` tokens are a value, with or without the token that ends it."""
        if num_drawn > MAX_VALUE:  # a text, or thoughts
            return
        at = len(output_ids) - num_drawn
        before, drawn = output_ids[max(at - PLACE, 0) : at], output_ids[at:]
        record = self._quotes.get(before)
        if record is not None:
            record.note(self._told(record.source, drawn))
        if record is None or record.trust < WEAK:
            self._quotes.put(before, self._locate(drawn))

    def _find(self, source: Source) -> list[int]:
        """The tokens of the value at its `source`; empty when there is nothing of the kind."""
        if source not in self._found:
            ids = self._tokens(*self._between(source.before, source.after))
            self._plain[source] = [*source.lead, *ids, *source.trail] if ids else []
            self._found[source] = self._quotes.spell(self._plain[source])
        return self._found[source]

    def _told(self, source: Source, drawn: list[int]) -> bool:
        """Whether the source told what was drawn. The same text in other tokens is right, and they are remembered."""
        expected, text = self._find(source), self._vocabulary.text_bytes
        if expected and expected != drawn and text(expected) == text(drawn):
            self._quotes.note_spelling(self._plain[source], drawn)
            return True
        return expected == drawn

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
