"""uvicorn's HTTP protocol with the limits that it lacks.

    head    at most HEAD_BYTES, within HEAD_SECONDS of the connection or of its first byte (431, 408)
    body    may stall for BODY_SECONDS, plus one second for every BODY_RATE bytes that came (408)
    answer  a client that reads nothing for WRITE_SECONDS is cut off

A client that sends a byte now and then, or never reads, cannot hold a connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
HEAD_SECONDS = 15.0
BODY_SECONDS = 30.0
BODY_RATE = 16 << 10
WRITE_SECONDS = 60.0
GRACE_SECONDS = 0.1
"""from the moment a client is late to the refusal: what came while this process was busy is read first"""

_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._body_since = 0.0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    # --- the connection -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reading = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        self._body_bytes += len(data)
        if self._reading is None and self._in_head:
            self._reading = self.loop.call_later(HEAD_SECONDS, self._head_is_late)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._refuse(431)
        elif self._in_body and self._reading is None:
            self._body_since, self._body_bytes = self.loop.time(), 0
            self._reading = self.loop.call_later(BODY_SECONDS, self._check_body)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    # --- the parser ---------------------------------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._stop_reading_timer()
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refuse(431)
            raise ValueError("the head is too large")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_reading_timer()
        self._in_head, self._in_body = True, False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    # --- limits -------------------------------------------------------------------------------------------------------------

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _head_is_late(self) -> None:
        self._reading = self.loop.call_later(GRACE_SECONDS, self._head_did_not_come)

    def _head_did_not_come(self) -> None:
        self._reading = None
        if self._head_bytes:
            self._refuse(408)
        else:
            self.transport.close()

    def _check_body(self, is_last: bool = False) -> None:
        """A body may take as long as its bytes justify; while we are the slow ones, there is no hurry."""
        self._reading = None
        if self.flow.read_paused:
            self._body_since = self.loop.time()
        left = self._body_since + BODY_SECONDS + self._body_bytes / BODY_RATE - self.loop.time()
        if left > 0:
            self._reading = self.loop.call_later(left + 0.01, self._check_body)
        elif not is_last:
            self._reading = self.loop.call_later(GRACE_SECONDS, self._check_body, True)
        else:
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        """Answers, unless an answer is on its way, and hangs up."""
        self._stop_reading_timer()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            reason = _REASONS[status]
            head = (
                b"HTTP/1.1 %d %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head % (status, reason, len(reason)) + reason)
        self.transport.close()
