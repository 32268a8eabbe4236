"""Answers in harmony, the format of gpt-oss: messages with a channel and perhaps a recipient (source: OpenAI's description of harmony).

<|channel|>analysis<|message|>...<|end|>                                              reasoning
<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>   a call; `to` may stand before the channel
<|start|>assistant<|channel|>commentary<|message|>...<|end|>                          what the user is told before a call
<|start|>assistant<|channel|>final<|message|>...<|return|>                            the answer

The first header has its beginning in the prompt. An answer without headers is text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import regex

from sglang.common.growing import Growing, held_len
from sglang.srt.server.parsers.call_parser import CallParser
from sglang.srt.server.parsers.json_calls import ValueScanner, arguments_text, read_arguments
from sglang.srt.server.parsers.pieces import Piece, Reasoning, Text
from sglang.srt.server.tokenization.detokenizer import IncrementalText

HARMONY = "harmony"
START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
FINAL = "final"
ANSWERING = f"assistant{CHANNEL}{FINAL}{MESSAGE}"
"""the header of an answer that is continued"""
HARMONY_ENDS = (END, MESSAGE)
"""what ends reasoning before a constrained answer, the first where the model would end its text there"""
HARMONY_LEAD = CHANNEL + FINAL
"""what a header has that ends it"""

_ENDS = (END, "<|return|>", "<|call|>")
_STOPS = (*_ENDS, START, CHANNEL)
"""what a message's text ends at; models leave the mark of its end out at times"""
MAX_HEADER = 500
_TO = r"(?:\s*to=(?P<to>[^\s<]+))?"
_HEADER = regex.compile(
    rf"\s*(?:<\|start\|>\s*(?:assistant)?)?{_TO}\s*(?:<\|channel\|>\s*(?P<channel>\w+){_TO}(?:\s*<\|constrain\|>)?(?:\s*[\w.+/-]+)?)?"
    r"\s*<\|message\|>"
)


def header_of(prompt_end: str) -> str:
    """What a prompt that ends like this has of the answer's first header."""
    _, found, header = prompt_end.rpartition(START)
    return header if found and not any(end in header for end in _ENDS) else ""


class HarmonyCalls(CallParser):
    """A Parser of the whole answer: reasoning, text and calls. `header`: what the prompt has of the first header. `is_raw`: what is no
    call is text, with all its marks."""

    markers = (START, CHANNEL, MESSAGE, "<|constrain|>", *_ENDS)

    def __init__(
        self,
        tools: Collection[str],
        max_calls: int | None = None,
        exact: Collection[str] = (),
        header: str = "",
        is_raw: bool = False,
    ) -> None:
        super().__init__(tools, max_calls, exact)
        self._is_raw = is_raw
        self._said = START + header if header else ""
        self._state = self._read_header
        self._kind = "text"
        self._scanner = ValueScanner()
        self._arguments = Growing()
        self._is_object = False
        self._is_new = False
        self._spoken: set[type[Piece]] = set()
        if MESSAGE in header:
            self._begin_message(_HEADER.match(self._said), "")
            self._said = ""

    @property
    def place(self) -> str:
        """`header`, or what the message is that is being read: `reasoning`, `text` or `call`."""
        return "header" if self._state == self._read_header else self._kind

    def finish(self) -> list[Piece]:
        """The beginning of a header is left out."""
        pieces = self._run(final=True)
        if self._is_raw and self._buffer:
            pieces.append(Text(self._buffer))
        self._buffer = ""
        return pieces

    # --- headers ------------------------------------------------------------------------------------------------------------

    def _read_header(self, final: bool) -> bool:
        said, buffer = self._said, self._buffer
        found = _HEADER.match(said + buffer, partial=True)
        if found is not None and found.partial and len(buffer) <= MAX_HEADER:
            return False
        if found is not None and not found.partial and found.end() <= len(said) + MAX_HEADER:
            size = found.end() - len(said)
            self._begin_message(found, buffer[:size])
        else:
            mark = next((mark for mark in _STOPS if buffer.startswith(mark)), "")
            size = len(mark)
            self._begin_message(None, "" if mark in _ENDS and not self._is_raw else mark)
        self._said, self._buffer = "", buffer[size:]
        return True

    def _begin_message(self, header: Any, written: str) -> None:
        """`header`: the match; None for text that has none. `written`: the part that the model wrote."""
        recipient, channel = ("", "") if header is None else (header["to"] or "", header["channel"] or "")
        self._state, self._is_new = self._read_message, header is not None
        self._kind = "reasoning" if channel == "analysis" else "text"
        name = recipient if recipient in self._tools else recipient.removeprefix("functions.")
        if recipient and self._begin_call(name):
            self._kind, self._scanner, self._arguments = "call", ValueScanner(), Growing()
        elif self._is_raw:
            self._pieces.append(Text(written))
        elif written and (recipient or header is None):  # nobody can be called so: as the model wrote it
            self._say(written)

    # --- messages -----------------------------------------------------------------------------------------------------------

    def _read_message(self, final: bool) -> bool:
        buffer = self._buffer
        places = [(at, mark) for mark in _STOPS if (at := buffer.find(mark)) >= 0]
        if not places:
            keep = 0 if final else held_len(buffer, _STOPS)
            self._take_text(buffer[: len(buffer) - keep])
            self._buffer = buffer[len(buffer) - keep :]
            return False
        at, mark = min(places)
        self._take_text(buffer[:at])
        if self._kind == "call":
            self._end_call()
        if mark in _ENDS:
            if self._is_raw and self._kind != "call":
                self._pieces.append(Text(mark))
            at += len(mark)
        self._buffer = buffer[at:]
        self._state = self._read_header
        return True

    def _take_text(self, text: str) -> None:
        if self._kind == "call":
            self._take_arguments(text)
        elif text and self._is_raw:
            self._pieces.append(Text(text))
        elif text:
            self._say(text)

    def _say(self, text: str) -> None:
        """Messages of one kind are told apart by an empty line."""
        kind = Reasoning if self._kind == "reasoning" else Text
        if self._is_new and kind in self._spoken:
            text = "\n\n" + text
        self._is_new = False
        self._spoken.add(kind)
        self._pieces.append(kind(text))

    def _take_arguments(self, text: str) -> None:
        """Passes an object on as it comes. What else stands there waits for its end."""
        text = text if self._arguments else text.lstrip()
        if not self._arguments:
            self._is_object = text.startswith("{")
        if not self._is_object:
            self._arguments.add(text)
            return
        if self._scanner.done or self._scanner.is_broken:
            return
        more = self._scanner.as_json(text[: self._scanner.feed(text)])
        self._arguments.add(more)
        self._add_arguments(more, self._is_whole() and read_arguments(str(self._arguments)) is not None)

    def _is_whole(self) -> bool:
        return self._scanner.done

    def _end_call(self) -> None:
        """Nothing, or null, stands for no arguments; models write objects in strings, too."""
        if self._arguments and self._is_object:
            return
        text = str(self._arguments).rstrip()
        whole = arguments_text(text)
        self._add_arguments(text if whole is None else whole, whole is not None)


class HarmonyCounter:
    """Counts the tokens of reasoning, its headers and marks included. `table`: the bytes of every token."""

    def __init__(self, header: str, table: Sequence[bytes]) -> None:
        self.num_tokens = 0
        self._parser = HarmonyCalls((), header=header)
        self._text = IncrementalText()
        self._table = table
        self._num_header = 0

    def feed(self, ids: list[int]) -> None:
        for i in ids:
            was = self._parser.place
            self._parser.feed(self._text.push(self._table[i] if 0 <= i < len(self._table) else b""))
            now = self._parser.place
            if "reasoning" in (was, now):
                self.num_tokens += 1 + self._num_header
                self._num_header = 0
            else:
                self._num_header = self._num_header + 1 if now == "header" else 0
