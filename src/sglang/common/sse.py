"""Server-sent events, parsed by event and never by network chunk (source: the HTML standard, section 9.2): `EventReader` for any server's
stream, `EventSplitter` for those of our own servers that are passed on."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

MAX_EVENT_LEN = 64 << 20


class EventReader:
    """Feed it bytes as they arrive; it gives the `data` of each complete event. An event that the stream's end cuts off is
    dropped, as the standard says."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._line: list[str] = []
        self._data: list[str] = []
        self._after_cr = False
        self._len = 0

    def feed(self, chunk: bytes) -> Iterator[str]:
        text = self._decoder.decode(chunk)
        if self._after_cr and text.startswith("\n"):
            text = text[1:]
        if text:
            self._after_cr = text.endswith("\r")
        self._len += len(text)
        if self._len > MAX_EVENT_LEN:
            raise ValueError(f"an event of the stream is longer than {MAX_EVENT_LEN} characters")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for i, part in enumerate(lines):
            if part:
                self._line.append(part)
            if i < len(lines) - 1:
                event = self._end_line()
                if event is not None:
                    yield event

    def _end_line(self) -> str | None:
        line = "".join(self._line)
        self._line.clear()
        if not line:
            if not self._data:
                return None
            event = "\n".join(self._data)
            self._data.clear()
            self._len = 0
            return event
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value[1:] if value.startswith(" ") else value)
        return None


class EventSplitter:
    """Feed it bytes as they arrive; it gives the complete events as they are, without the blank line at their end. Lines must end in
    "\\n", as those of our servers do."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        if not piece:
            return []
        if self._rest:
            self._rest.append(piece)
            if b"\n\n" not in piece and not (piece[:1] == b"\n" and self._rest[-2][-1:] == b"\n"):
                return []  # a long event is joined once, when its end has come
            piece = b"".join(self._rest)
        *events, rest = piece.split(b"\n\n")
        self._rest = [rest] if rest else []
        return events
