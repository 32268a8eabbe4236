"""What all formats of tool calls share: text until a mark that opens a call, and text again when it was none.

A format says which marks open a call and reads what follows; see formats/. White space around calls is not content.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from sglang.srt.server.parsers.pieces import CallArguments, CallBegin, Growing, Piece, Text, held_len

_CHUNK = 256
_REREAD = 512
"""what was taken for a call is read again only so far: the time for an answer stays in proportion to its length"""


class CallParser:
    """Base of the formats. `names` are the tools there are: a call of any other is text. Calls beyond `max_calls` are left
    out. `exact`: tools that a constraint holds to one way of writing; what only looks like a call of them is text. (JSON formats need
    not look: theirs cannot be written otherwise.)"""

    openers: tuple[str, ...] = ()
    """marks that may begin a call; of two at one place the longer counts"""
    markers: tuple[str, ...] = ()
    """names that are special tokens in some vocabularies and must be seen"""

    def __init__(self, names: Collection[str], max_calls: int | None = None, exact: Collection[str] = ()) -> None:
        self._names = frozenset(names)
        self._exact = frozenset(exact)
        self._max_calls = max_calls
        self._buffer = ""
        self._raw = Growing()
        self._pieces: list[Piece] = []
        self._space = Growing()
        self._after_call = False
        self._num_calls = 0
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
        if not text:
            return
        if self._after_call:
            text = text.lstrip()
            if not text:
                return
            self._after_call = False
        body = text.rstrip()
        if body:
            self._pieces.append(Text(self._space.take() + body))
        self._space.add(text[len(body) :])

    # --- calls --------------------------------------------------------------------------------------------------------------

    def _begin_call(self, name: str) -> bool:
        """False if there is no such tool."""
        if name not in self._names:
            return False
        self._raw.take()
        self._space.take()
        self._after_call = True
        self._num_calls += 1
        if self._wanted:
            self._pieces.append(CallBegin(self._num_calls - 1, name))
        return True

    def _add_arguments(self, text: str) -> None:
        if text and self._wanted:
            self._pieces.append(CallArguments(self._num_calls - 1, text))

    @property
    def _wanted(self) -> bool:
        return self._max_calls is None or self._num_calls <= self._max_calls
