"""One GET over HTTP/1.1 and its answer, by a server that may be hostile: in time or work per byte, too.

What comes is parsed in pieces, between which other requests have their turn. All bytes besides the body (heads, also of interim answers;
trailers; what divides the body into chunks) are limited, so that work is in proportion to the body.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httptools

READ_BYTES = 16 << 10
"""parsed at once"""
BESIDES_BYTES, BESIDES_SHARE = 64 << 10, 4
"""bytes besides the body: so many, and so many times fewer than the body has"""


class BrokenAnswer(Exception):
    """What came is no whole answer, or costs more than its body."""


class Answer:
    """An answer whose head has come. `headers`: the last of each name, in lower case."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self._has_head = False
        self._is_complete = False
        self._pieces: list[bytes] = []
        self._wire_len = 0
        self._body_len = 0

    # --- what the parser calls ----------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._is_complete:
            return  # an answer that nobody asked for
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers.clear()
        else:
            self._has_head = True

    def on_body(self, body: bytes) -> None:
        if self._is_complete:
            return
        self._pieces.append(body)
        self._body_len += len(body)

    def on_message_complete(self) -> None:
        self._is_complete = self._is_complete or self._has_head

    # --- reading ------------------------------------------------------------------------------------------------------------

    async def read_head(self) -> None:
        """Raises BrokenAnswer."""
        while not self._has_head:
            if not await self._read():
                raise BrokenAnswer("the connection was closed")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes. Raises BrokenAnswer."""
        while True:
            if self._pieces:
                data = b"".join(self._pieces)
                self._pieces.clear()
                yield data
            if self._is_complete:
                return
            if not await self._read():
                if "content-length" in self.headers or "transfer-encoding" in self.headers:
                    raise BrokenAnswer("the connection was closed")
                return

    async def _read(self) -> bool:
        """False: nothing more comes."""
        await asyncio.sleep(0)  # what is buffered already is given without waiting
        data = await self._reader.read(READ_BYTES)
        if not data:
            return False
        self._wire_len += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:  # else something follows, which nobody asked for
                raise BrokenAnswer(str(error)) from error
        if self._wire_len - self._body_len > BESIDES_BYTES + self._body_len // BESIDES_SHARE and not self._is_complete:
            raise BrokenAnswer("its heads are too long, or its pieces too small")
        return True


@asynccontextmanager
async def get(
    address: str, port: int, target: str, headers: dict[str, str], tls: ssl.SSLContext | None = None, name: str | None = None
) -> AsyncIterator[Answer]:
    """Requests `target` of a server; `name`: whose certificate it must have. Raises OSError and BrokenAnswer."""
    reader, writer = await asyncio.open_connection(address, port, ssl=tls, server_hostname=name if tls else None)
    try:
        lines = [f"GET {target} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items()), "Connection: close"]
        writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
        answer = Answer(reader)
        await answer.read_head()
        yield answer
    finally:
        writer.transport.abort()
