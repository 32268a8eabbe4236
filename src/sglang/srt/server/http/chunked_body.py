"""Finds the end of a chunked body. uvicorn's parser does not report it, and parsing one request at a time needs it.

5;ext=1 \\r\\n hello \\r\\n   ...   0 \\r\\n trailer: x \\r\\n \\r\\n
a line  |  size + 2 bytes        lines, up to an empty one
"""

from __future__ import annotations

from sglang.srt.server.http.wire_numbers import hexadecimal_number

LINE_BYTES = 64
"""of each line that are looked at: the size is at its beginning"""


class ChunkedBody:
    """Follows one body. What is not well formed is left to the parser to refuse."""

    def __init__(self) -> None:
        self._line = b""
        self._left = 0
        self._is_last = False

    def measure(self, data: bytes) -> int:
        """The number of the next bytes that belong to the body: all of them, unless it ends among them."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1
            self._line += data[at : min(end or len(data), at + LINE_BYTES)]
            if not end:
                self._line = self._line[:LINE_BYTES]
                break
            at = end
            line, self._line = self._line.strip(), b""
            if self._is_last and not line:
                return at
            if not self._is_last:
                self._begin_chunk(line)
        return len(data)

    def _begin_chunk(self, line: bytes) -> None:
        size = hexadecimal_number(line.partition(b";")[0][:LINE_BYTES].rstrip())
        if size is None:
            return
        self._is_last = size == 0
        self._left = size + 2 if size > 0 else 0
