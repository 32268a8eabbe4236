"""What a model thinks before it answers, told from the answer.

<think>thoughts</think>answer          the opening mark may stand in the prompt, or be left out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang.srt.errors import ConfigError
from sglang.srt.server.parsers.pieces import Growing, Piece, Reasoning, Text, held_len
from sglang.srt.server.tokenization.incremental import IncrementalText


@dataclass(frozen=True)
class ReasoningFormat:
    """`pairs`: marks around thoughts. `always`: an answer begins with thoughts even where nothing opens them. `opens`: models
    of this kind open them themselves, unless the prompt has opened or closed them."""

    pairs: tuple[tuple[str, str], ...]
    always: bool = False
    opens: bool = False

    @property
    def begins(self) -> tuple[str, ...]:
        return tuple(begin for begin, _ in self.pairs)

    @property
    def ends(self) -> tuple[str, ...]:
        return tuple(end for _, end in self.pairs)


_THINK = (("<think>", "</think>"),)
FORMATS: dict[str, ReasoningFormat] = {
    "deepseek-r1": ReasoningFormat(_THINK, always=True),
    "qwen3": ReasoningFormat(_THINK, opens=True),
    "qwen3-thinking": ReasoningFormat(_THINK, always=True),
    "deepseek-v3": ReasoningFormat(_THINK, opens=True),
    "glm45": ReasoningFormat(_THINK, opens=True),
    "kimi_k2": ReasoningFormat(_THINK, opens=True),
    "step3": ReasoningFormat(_THINK, always=True),
    "kimi": ReasoningFormat((("◁think▷", "◁/think▷"),), opens=True),
    "generic": ReasoningFormat(
        (
            *_THINK,
            ("<thinking>", "</thinking>"),
            ("<reasoning>", "</reasoning>"),
            ("<thought>", "</thought>"),
        )
    ),
}
MAX_MARK = 64


def reasoning_format(name: str) -> ReasoningFormat:
    """A format by name, or "BEGIN,END": any two marks. Raises ConfigError."""
    if name in FORMATS:
        return FORMATS[name]
    begin, comma, end = name.partition(",")
    if comma and 0 < len(begin) <= MAX_MARK and 0 < len(end) <= MAX_MARK and begin != end:
        return ReasoningFormat(((begin, end),))
    raise ConfigError(
        f"there is no reasoning parser {name!r}; there are {', '.join(sorted(FORMATS))}, or two marks with a comma between"
    )


def starts_inside(format_: ReasoningFormat, prompt_end: str) -> bool:
    """Whether the answer to a prompt that ends like this begins with thoughts."""
    end = prompt_end.rstrip()
    if end.endswith(format_.begins):
        return True
    return format_.always and not end.endswith(format_.ends)


def opens_thoughts(format_: ReasoningFormat, prompt_end: str) -> bool:
    """Whether the model will open thoughts of its own accord."""
    return format_.opens and not prompt_end.rstrip().endswith(format_.ends)


def ends_inside(format_: ReasoningFormat, text: str) -> bool:
    """Whether an answer that has got so far is still thoughts."""
    return max(map(text.rfind, format_.begins)) > max(map(text.rfind, format_.ends))


class ReasoningParser:
    """A Parser of Reasoning and Text. Thoughts come first, or not at all: marks later in the answer are text."""

    def __init__(self, format_: ReasoningFormat, inside: bool) -> None:
        self._format = format_
        self._ends = format_.ends if inside else ()
        self._state = "inside" if inside else "before"
        self._fresh = True
        self._opened = False
        self._buffer = ""
        self._space = Growing()

    @property
    def is_inside(self) -> bool:
        return self._state == "inside"

    @property
    def is_over(self) -> bool:
        """Whether no more thoughts can come."""
        return self._state == "after"

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        rest, self._buffer = self._space.take() + self._buffer, ""
        if not rest.strip():
            return []
        return [Reasoning(rest.rstrip()) if self._state == "inside" else Text(rest)]

    def _step(self, pieces: list[Piece]) -> bool:
        """One move; False when more text is needed."""
        if self._state == "before":
            return self._look_for_begin()
        if self._state == "inside":
            return self._read_thoughts(pieces)
        return self._read_answer(pieces)

    def _look_for_begin(self) -> bool:
        text = self._buffer.lstrip()
        self._space.add(self._buffer[: len(self._buffer) - len(text)])
        for begin, end in self._format.pairs:
            if text.startswith(begin):
                self._space.take()
                self._ends = (end,)
                self._buffer = text[len(begin) :]
                self._state, self._opened = "inside", True
                return True
        if not text or any(begin.startswith(text) for begin in self._format.begins):
            self._buffer = text
            return False
        self._buffer = self._space.take() + text  # it is part of the answer
        self._state, self._fresh = "after", False
        return True

    def _read_thoughts(self, pieces: list[Piece]) -> bool:
        if self._fresh and not self._skip_opening():
            return False
        places = [(at, end) for end in self._ends if (at := self._buffer.find(end)) >= 0]
        if places:
            at, end = min(places)
            self._say(pieces, self._buffer[:at])
            self._space.take()
            self._buffer = self._buffer[at + len(end) :]
            self._state, self._fresh = "after", True
            return True
        size = len(self._buffer) - held_len(self._buffer, self._ends)
        self._say(pieces, self._buffer[:size])
        self._buffer = self._buffer[size:]
        return False

    def _say(self, pieces: list[Piece], text: str) -> None:
        """Adds thoughts. White space at the end waits for more of them."""
        body = text.rstrip()
        if body:
            pieces.append(Reasoning(self._space.take() + body))
        self._space.add(text[len(body) :])

    def _skip_opening(self) -> bool:
        """Leaves out white space, and an opening mark that the model repeats. False when more text is needed."""
        text = self._buffer.lstrip()
        for begin in self._format.begins if not self._opened else ():
            if text.startswith(begin):
                text, self._opened = text[len(begin) :].lstrip(), True
                break
        if not text or (not self._opened and any(begin.startswith(text) for begin in self._format.begins)):
            self._buffer = text
            return False
        self._buffer, self._fresh = text, False
        return True

    def _read_answer(self, pieces: list[Piece]) -> bool:
        text = self._buffer
        if self._fresh:  # line breaks between thoughts and answer belong to neither
            text = text.lstrip()
            self._fresh = not text
        if text:
            pieces.append(Text(text))
        self._buffer = ""
        return False


class ReasoningCounter:
    """Counts the tokens of thoughts, their marks included. `table`: the bytes of every token."""

    def __init__(self, format_: ReasoningFormat, inside: bool, table: Sequence[bytes]) -> None:
        self.num_tokens = 0
        self._parser = ReasoningParser(format_, inside)
        self._text = IncrementalText()
        self._table = table
        self._num_seen = 0

    def feed(self, ids: list[int]) -> None:
        for i in ids:
            if self._parser.is_over:
                return
            was_inside = self._parser.is_inside
            self._parser.feed(self._text.push(self._table[i] if 0 <= i < len(self._table) else b""))
            self._num_seen += 1
            if was_inside or self._parser.is_inside:
                self.num_tokens = self._num_seen
