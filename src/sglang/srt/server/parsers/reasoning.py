"""Separates reasoning from answers (common/reasoning.py) into pieces, and counts its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from sglang.common.growing import Growing
from sglang.common.reasoning import FORMATS, ReasoningFormat, ReasoningSplitter
from sglang.srt.errors import ConfigError
from sglang.srt.server.parsers.pieces import Piece, Reasoning, Text
from sglang.srt.server.tokenization.detokenizer import IncrementalText

MAX_MARK = 64
GPT_OSS = ReasoningFormat((("<|channel|>analysis<|message|>", "<|end|>"),), opens=True)
"""what follows has a header, too: harmony.py reads it"""
_OWN = dict.fromkeys(("gpt-oss", "harmony"), GPT_OSS)


def reasoning_format(name: str) -> ReasoningFormat:
    """A format by name, or "BEGIN,END": any two marks. Raises ConfigError."""
    known = FORMATS | _OWN
    if name in known:
        return known[name]
    begin, comma, end = name.partition(",")
    if comma and 0 < len(begin) <= MAX_MARK and 0 < len(end) <= MAX_MARK and begin != end:
        return ReasoningFormat(((begin, end),))
    raise ConfigError(
        f"there is no reasoning parser {name!r}; there are {', '.join(sorted(known))}, or two marks with a comma between"
    )


def starts_inside(format_: ReasoningFormat, prompt_end: str) -> bool:
    """Whether the answer to a prompt that ends like this begins with reasoning."""
    end = prompt_end.rstrip()
    if end.endswith(format_.begins):
        return True
    return format_.always and not end.endswith(format_.ends)


def opens_reasoning(format_: ReasoningFormat, prompt_end: str) -> bool:
    """Whether the model will begin its reasoning with the opening mark itself."""
    return format_.opens and not prompt_end.rstrip().endswith(format_.ends)


def ends_inside(format_: ReasoningFormat, text: str) -> bool:
    """Whether an answer that has got so far is still reasoning."""
    return max(map(text.rfind, format_.begins)) > max(map(text.rfind, format_.ends))


class ReasoningParser:
    """A Parser of Reasoning and Text. White space around reasoning belongs to neither."""

    def __init__(self, format_: ReasoningFormat, inside: bool) -> None:
        self._splitter = ReasoningSplitter(format_, inside)
        self._has_begun = False
        self._has_answered = False
        self._space = Growing()

    def feed(self, text: str) -> list[Piece]:
        reasoning, answer = self._splitter.feed(text)
        pieces = self._reasoning(reasoning) if reasoning else []
        if answer and not self._has_answered:
            answer = answer.lstrip() if self._splitter.was_closed else answer
            self._has_answered = bool(answer)
        if answer:
            pieces.append(Text(answer))
        return pieces

    def finish(self) -> list[Piece]:
        reasoning, answer = self._splitter.close()
        return [*self._reasoning(reasoning), *([Text(answer)] if answer.strip() else [])]

    def _reasoning(self, text: str) -> list[Piece]:
        """White space at the end waits for more."""
        if not self._has_begun:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self._space.add(text)
            return []
        self._has_begun = True
        piece = Reasoning(self._space.take() + body)
        self._space.add(text[len(body) :])
        return [piece]


class ReasoningCounter:
    """Counts the tokens of reasoning, its marks included. `table`: the bytes of every token."""

    def __init__(self, format_: ReasoningFormat, inside: bool, table: Sequence[bytes]) -> None:
        self.num_tokens = 0
        self._splitter = ReasoningSplitter(format_, inside)
        self._text = IncrementalText()
        self._table = table
        self._num_seen = 0

    def feed(self, ids: list[int]) -> None:
        for i in ids:
            if self._splitter.is_over:
                return
            was_inside = self._splitter.is_inside
            self._splitter.feed(self._text.push(self._table[i] if 0 <= i < len(self._table) else b""))
            self._num_seen += 1
            if was_inside or self._splitter.is_inside:
                self.num_tokens = self._num_seen
