"""The common part of all formats of tool calls: text until a marker that opens a call; text again if it was not a call.

A format names the markers that open a call and parses what follows; see formats/. White space beside calls is content if there is text
on both sides. An error in one call does not affect others: a call of an unknown tool becomes text, its neighbours remain calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from sglang.common.growing import Growing, held_len
from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Piece, Text

_CHUNK = 256
_REREAD = 512
"""what was taken for a call is read again only so far: the time for an answer stays in proportion to its length"""


class CallParser:
    """Base of the formats. `tools`: the names of those there are; a mapping says their parameters, too, in order: names, or
    the schema of each by its name. A call of any other tool is text. Calls beyond `max_calls` are left out. `exact`: tools that a constraint holds to one way of writing;
    what only looks like a call of them is text."""

    openers: tuple[str, ...] = ()
    """marks that may begin a call; of two at one place the longer counts"""
    markers: tuple[str, ...] = ()
    """names that are special tokens in some vocabularies and must be seen"""

    separators = ",;"
    """what stands between the calls of a list"""
    blanks = " \t\r\n"
    """what may stand before that"""
    debris = "}]"
    """brackets too many that models write behind a call"""

    def __init__(self, tools: Collection[str], max_calls: int | None = None, exact: Collection[str] = ()) -> None:
        known = tools if isinstance(tools, Mapping) else dict.fromkeys(tools, ())
        self._tools: Mapping[str, Mapping[str, Any]] = {
            name: parameters if isinstance(parameters, Mapping) else dict.fromkeys(parameters)
            for name, parameters in known.items()
        }
        self._exact = frozenset(exact)
        self._max_calls = max_calls
        self._buffer = ""
        self._raw = Growing()
        self._pieces: list[Piece] = []
        self._space = Growing()
        self._gap = Growing()
        self._has_text = False
        self._after_call = False
        self._num_calls = self._num_before = 0
        self._num_open = 0
        self._state: Callable[[bool], bool] = self._read_text

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for at in range(0, len(text), _CHUNK):  # what is read is cut off the front: short buffers keep that cheap
            self._buffer += text[at : at + _CHUNK]
            pieces += self._run(final=False)
        return pieces

    def finish(self) -> list[Piece]:
        pieces = self._run(final=True)
        if self._raw or self._buffer:
            self._give_up(self._raw.length)
            self._emit_text(self._buffer)
            self._buffer = ""
            pieces += self._take()
        if self._space and not self._num_calls:
            pieces.append(Text(self._space.take()))
        return pieces

    def _run(self, final: bool) -> list[Piece]:
        while self._state(final):
            pass
        return self._take()

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    # --- text ---------------------------------------------------------------------------------------------------------------

    def _read_text(self, final: bool) -> bool:
        """Emits text up to the next opener. True if there is one."""
        buffer = self._buffer
        places = [(at, -len(mark), mark) for mark in self.openers if (at := buffer.find(mark)) >= 0]
        if not places:
            keep = 0 if final else held_len(buffer, self.openers)
            self._emit_text(buffer[: len(buffer) - keep])
            self._buffer = buffer[len(buffer) - keep :]
            return False
        at, _, mark = min(places)
        if not final and held_len(buffer, self.openers) == len(buffer) - at:
            longer = any(m != mark and m.startswith(buffer[at:]) for m in self.openers)
            if longer:  # a longer mark may be on its way
                self._emit_text(buffer[:at])
                self._buffer = buffer[at:]
                return False
        self._emit_text(buffer[:at])
        self._buffer = buffer[at:]
        self._raw.take()
        self._num_before, self._num_open = self._num_calls, 0
        self._open(mark)
        return True

    def _open(self, mark: str) -> None:
        """Goes on to read what `mark` opened; the buffer begins with the mark."""
        raise NotImplementedError

    def _consume(self, count: int) -> str:
        """Takes characters from the buffer; they are remembered, in case that all this is no call."""
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self._raw.add(taken)
        return taken

    def _give_up(self, as_text: int = 1) -> None:
        """It was no call: the first `as_text` characters since the opener are text, what follows is read again."""
        raw = self._raw.take()
        as_text = len(raw) if len(raw) > _REREAD else as_text
        self._emit_text(raw[:as_text])
        self._buffer = raw[as_text:] + self._buffer
        self._state = self._read_text

    def _emit_text(self, text: str) -> None:
        """White space waits until it is known whether text follows."""
        body = text.lstrip()
        (self._gap if self._after_call else self._space).add(text[: len(text) - len(body)])
        if not body:
            return
        space = self._space.take() + self._gap.take()
        text = body.rstrip()
        self._pieces.append(Text(space + text if self._has_text or not self._num_calls else text))
        self._has_text, self._after_call = True, False
        self._space.add(body[len(text) :])

    # --- what stands beside calls -------------------------------------------------------------------------------------------

    def _drop_between(self) -> None:
        """Marks and commas after a call belong to it. White space after them counts if text follows."""
        between = self._raw.take()
        space = between[len(between.rstrip()) :]
        if space != between:
            self._gap.take()
        self._gap.add(space)

    def _pass(self, mark: str) -> None:
        """Takes a mark, a bracket, or what else stands between calls."""
        self._num_open = max(self._num_open + (mark == "[") - (mark == "]"), 0)
        self._consume(len(mark))

    @property
    def _is_in_list(self) -> bool:
        """Whether brackets around calls are open: what they hold besides is text, and more calls may follow."""
        return self._num_open > 0 and self._num_calls > self._num_before

    def _is_debris(self, char: str) -> bool:
        return self._after_call and char in self.debris

    def _read_between(self, final: bool) -> bool:
        """Reads what stands between calls, up to the next."""
        raise NotImplementedError

    def _read_after_unknown(self, final: bool) -> bool:
        """Reads on after a call that is text: the list that it stands in, or more text."""
        self._consume(len(self._buffer) - len(self._buffer.lstrip(self.blanks)))
        if not self._buffer:
            return False
        if self._buffer[0] in self.separators:
            self._consume(1)
            self._state = self._read_between
        else:
            self._emit_text(self._raw.take())
            self._state = self._read_text
        if self._num_calls > self._num_before:  # what is left of the list belongs to its calls
            self._after_call, self._state = True, self._read_between
        return True

    # --- calls --------------------------------------------------------------------------------------------------------------

    def _begin_call(self, name: str) -> bool:
        """False if there is no such tool."""
        if name not in self._tools:
            return False
        self._raw.take()
        self._gap.take()
        if not self._has_text:
            self._space.take()
        self._after_call = True
        self._num_calls += 1
        if self._wanted:
            self._pieces.append(CallBegin(self._num_calls - 1, name))
        return True

    def _add_arguments(self, text: str, is_last: bool) -> None:
        if (text or is_last) and self._wanted:
            self._pieces.append(CallArguments(self._num_calls - 1, text, is_last))

    @property
    def _wanted(self) -> bool:
        return self._max_calls is None or self._num_calls <= self._max_calls
