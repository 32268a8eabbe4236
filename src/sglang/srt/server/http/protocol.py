"""uvicorn's HTTP protocol with additional limits.

    connection  one of at most --max-connections (503)
    head        at most HEAD_BYTES in MAX_HEADERS lines, within HEAD_SECONDS of the connection or of its first byte (431, 408)
    body        may stall for BODY_SECONDS, plus one second for every BODY_RATE bytes that came (408)
    framing     sizes and extensions of chunks, trailers: HEAD_BYTES, and BESIDE_RATIO bytes for each byte of the body (431)
    pipelining  one request at a time: the next one is parsed when this one has been answered, and until then no more is read
    turns       in each turn of the event loop, parsing has its time, and a few requests begin (starts.py)
    answer      a client that reads nothing for WRITE_SECONDS is disconnected
    end         a client may end its sending side and wait: it gets the answers to what it sent, if it is still there

A client that sends a byte now and then, sends without end, or never reads, can hold neither a connection nor memory for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sglang.srt.server.http.chunked_body import ChunkedBody
from sglang.srt.server.http.connections import Connections
from sglang.srt.server.http.starts import Starts
from sglang.srt.server.http.wire import ON_GONE
from sglang.srt.server.http.wire_numbers import whole_number

HEAD_BYTES = 64 << 10
MAX_HEADERS = 256
HEAD_SECONDS = 15.0
BODY_SECONDS = 30.0
BODY_RATE = 16 << 10
BESIDE_RATIO = 16
PIECE_BYTES = 16 << 10
"""are parsed at once"""
PEEK_BYTES = 256
"""of a head, in which a request for /health shows"""
UNWANTED_BYTES = 4 << 20
"""of a body that still comes when its request has been answered: after that the connection is closed"""
WRITE_SECONDS = 60.0
PROBE_SECONDS = 0.5
"""after which a client that sends no more is probed for the first time, and each time twice as long; at most so often as MAX_PROBE_SECONDS"""
MAX_PROBE_SECONDS = 32.0
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""an interim answer, which every client of HTTP/1.1 passes over (RFC 9110, 15.2)"""
EVERY_BEGINNING = b"HTTP/1.1 "
"""of answers: who speaks HTTP/1.0, which has no interim ones, is probed with one byte of it after the other"""
GRACE_SECONDS = 0.1
"""from the moment a client is late to the refusal: what came while this process was busy is read first"""

_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable: too many connections",
}


class _Flow(FlowControl):
    """Reading goes on when both agree: the application, which has taken the body, and the connection, which has no bytes
    left that wait for their turn."""

    is_held = False

    def resume_reading(self) -> None:
        if self.read_paused and not self.is_held:
            super().resume_reading()


class _Begun:
    """A transport on which some of EVERY_BEGINNING has been sent, which the answer leaves out."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._num_sent = 0

    def probe(self) -> None:
        self._transport.write(EVERY_BEGINNING[self._num_sent : self._num_sent + 1])
        self._num_sent = min(self._num_sent + 1, len(EVERY_BEGINNING))

    def write(self, data: bytes) -> None:
        self._transport.write(data[self._num_sent :])
        self._num_sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """One connection of `open_ones`. Its requests are parsed and begin when `starts` says so, and those for /health at once, as far as
    `probes` does."""

    flow: _Flow

    def __init__(self, *args: Any, open_ones: Connections, starts: Starts, probes: Starts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_ones = open_ones
        self._starts, self._probes = starts, probes
        self._unparsed = b""
        self._is_waiting = False
        """for time to parse that"""
        self._begin_head()
        self._in_message = False
        self._is_answering = False
        """a whole request has come that has not been answered"""
        self._is_retold = False
        self._body_bytes = 0
        self._body_since = 0.0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._unwritten = 0
        self._has_ended = False
        self._probing: asyncio.TimerHandle | None = None
        self._on_gone: Callable[[], None] | None = None

    def _begin_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._head_end = b""
        self._body_left: int | None = 0
        self._taken = 0
        self._beside = 0
        self._unwanted = 0

    # --- the connection -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if not self._open_ones.enter(self):
            self._refuse(503)
            return
        self._open_ones.rest(self)
        self._reading = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_ones.leave(self)
        self._stop_reading_timer()
        self._stop_writing_timer()
        if self._probing is not None:
            self._probing.cancel()
        self._unparsed = b""
        super().connection_lost(exc)
        self._tell_gone()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._body_bytes += len(data)
        self._unparsed = self._unparsed + data if self._unparsed else data
        if not self._is_waiting:
            self._parse()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._is_answering = False
        self._on_gone = None
        if self.transport.is_closing():
            self._close()
            return
        if self._unparsed and not self._is_waiting:
            self._unset_keepalive_if_required()
            self._parse()
        if not self._is_answering:
            self._open_ones.rest(self)
        self._close_if_ended()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.scope[ON_GONE] = self._watch_client  # type: ignore[literal-required]
        starts = self._probes if self.scope["path"].endswith("/health") else self._starts
        starts.put(partial(super()._start_asgi_task, cycle, app))

    def _watch_client(self, then: Callable[[], None]) -> None:
        """Calls `then` when the client hangs up before it has its answer. Its request has been read, so that no more is needed of it
        than to notice that."""
        self._on_gone = then
        if self.cycle.disconnected:
            self.loop.call_soon(self._tell_gone)
        else:
            self.flow.resume_reading()

    def _tell_gone(self) -> None:
        then, self._on_gone = self._on_gone, None
        if then is not None:
            then()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        super().shutdown()
        if not self.transport.is_closing():
            return
        if self.scheme == "https" and not self.transport.get_write_buffer_size():
            self.cut_off()  # TLS would wait for a goodbye, and a client that rests says none
        else:
            self._close()

    def cut_off(self) -> None:
        """Closes the connection at once, whatever is unsent."""
        self.transport.abort()

    # --- one request after the other ----------------------------------------------------------------------------------------

    def _parse(self) -> None:
        """Gives the parser what came. What follows a request waits until that is answered."""
        data, at, transport, began = self._unparsed, 0, self.transport, time.monotonic()
        is_probe = self._in_head and b"/health " in data[:PEEK_BYTES]
        time_left = (self._probes if is_probe else self._starts).parsing
        self._is_waiting = False
        while at < len(data) and not self._is_answering and not transport.is_closing():
            if time_left.is_up(began):
                self._is_waiting = True
                time_left.wait(self._parse)
                break
            at = self._parse_head(data, at) if self._in_head else self._parse_body(data, at)
        if transport.is_closing():
            self._unparsed = b""
            return
        self._unparsed = data[at:]
        self._open_ones.hold(self, self._head_bytes + len(self._unparsed))
        if self._reading is None and (self._in_message or self._head_bytes):
            self._wait_for_more()
        if self._unparsed:
            self.flow.is_held = True
            self.flow.pause_reading()
        elif self.flow.is_held:
            self.flow.is_held = False
            self.flow.resume_reading()

    def _wait_for_more(self) -> None:
        """The rest of a head or body has its time."""
        if self._in_head:
            self._reading = self.loop.call_later(HEAD_SECONDS, self._head_is_late)
        else:
            self._body_since, self._body_bytes = self.loop.time(), 0
            self._reading = self.loop.call_later(BODY_SECONDS, self._check_body)

    def _parse_head(self, data: bytes, at: int) -> int:
        """Parses bytes of a head from `at` on, not beyond its end. Returns where they end."""
        before = self._head_end
        found = (before + data[at : at + HEAD_BYTES]).find(b"\r\n\r\n")
        end = at + found + 4 - len(before) if found >= 0 else len(data)
        piece = data[at : min(end, at + HEAD_BYTES + 1 - self._head_bytes)]
        self._head_bytes += len(piece)
        self._head_end = (before + piece[-3:])[-3:]
        at = self._feed(piece, at)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._refuse(431)
        return at

    def _parse_body(self, data: bytes, at: int) -> int:
        """The same for a body: all of it that came, or a piece of a chunked one."""
        left = self._body_left
        if left is None:
            size = self._chunked.measure(data[at : at + PIECE_BYTES])
            self._beside += size
        else:
            size = min(len(data) - at, left or 1)
            self._body_left = left - size
        if self.cycle.response_complete:
            self._unwanted += size
        at = self._feed(data[at : at + size], at)
        if self._beside > HEAD_BYTES + BESIDE_RATIO * self._taken:
            self._refuse(431)
        elif self._unwanted > UNWANTED_BYTES:
            self._close()
        return at

    def _feed(self, piece: bytes, at: int) -> int:
        """Returns where the bytes that the parser took end, if `piece` begins at `at`."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:  # an offer to speak another protocol, which one may ignore
            if self._in_message:
                self._expect_body()
            return at + int(upgrade.args[0])
        except httptools.HttpParserError:
            self._refuse(400)
        return at + len(piece)

    def _expect_body(self) -> None:
        """The parser takes what follows an offer to upgrade for the other protocol. Where that is a body (Java's client sends such
        requests), another parser reads it, which is told no more than how long it is."""
        framing = b"transfer-encoding: chunked" if self._body_left is None else b"content-length: %d" % self._body_left
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_retold = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        self._is_retold = False

    # --- a client that sends no more ----------------------------------------------------------------------------------------

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: as long as there is something to answer."""
        self._has_ended = True
        if self.scheme == "https":  # a connection with TLS ends as a whole
            return False
        if not self._is_answering:
            return False
        if not self._unparsed:
            self.cycle.keep_alive = False
        probe: Callable[[], None] = partial(self.transport.write, PROBE)
        if self.scope["http_version"] != "1.1":
            begun: Any = _Begun(self.transport)
            self.cycle.transport, probe = begun, begun.probe
        self._probing = self.loop.call_later(PROBE_SECONDS, self._probe, probe, PROBE_SECONDS)
        return True

    def _probe(self, probe: Callable[[], None], waited: float) -> None:
        """A client that has gone looks the same, until something is sent to it: then its system refuses, which shows with what is
        sent next. Answers that have begun need no probes."""
        if self._is_answering and not self.cycle.response_started:
            probe()
        waited = min(2 * waited, MAX_PROBE_SECONDS)
        self._probing = self.loop.call_later(waited, self._probe, probe, waited)

    def _close_if_ended(self) -> None:
        if self._has_ended and not self._is_answering and not self.transport.is_closing():
            self._close()

    # --- the parser ---------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if not self._is_retold:
            if self._is_answering:  # the parser saw an end of the body that we did not
                raise ValueError("a request within a request")
            self._in_message = True
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_retold:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nobody reads those, and they must not change a head that was judged
        if len(self.headers) >= MAX_HEADERS:
            self._refuse(431)
            raise ValueError("too many headers")
        HttpToolsProtocol.on_header(self, name, value)

    def on_headers_complete(self) -> None:
        if self._is_retold:
            return
        self._stop_reading_timer()
        if self._head_bytes > HEAD_BYTES:
            self._refuse(431)
            raise ValueError("the head is too large")
        self._body_left = _body_len(self.headers)
        if self._body_left is None:
            self._chunked = ChunkedBody()
        self._in_head, self._head_bytes = False, 0
        self._open_ones.work(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._taken += len(body)
        if self._body_left is None:
            self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._body_left != 0 and self.parser.should_upgrade():
            return  # its body has yet to come
        self._stop_reading_timer()
        self._in_message = False
        self._begin_head()
        super().on_message_complete()
        self._is_answering = not self.cycle.response_complete
        if not self._is_answering:  # it was answered before its body had come
            self._open_ones.rest(self)

    # --- writing ------------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._stop_writing_timer()
        super().resume_writing()

    def _close(self) -> None:
        """The transport closes when its last bytes have been taken; the wait for that is bounded."""
        self.transport.close()
        self._watch_writing()

    def _watch_writing(self) -> None:
        if self._writing is None:
            self._unwritten = self.transport.get_write_buffer_size()
            self._writing = self.loop.call_later(WRITE_SECONDS, self._check_writing)

    def _check_writing(self) -> None:
        """A client may be slow; one that takes nothing at all is gone."""
        before, self._unwritten = self._unwritten, self.transport.get_write_buffer_size()
        if self._unwritten >= before:
            self.transport.abort()
        else:
            self._writing = self.loop.call_later(WRITE_SECONDS, self._check_writing)

    def _stop_writing_timer(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

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
            self._close()

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
            self.transport.write(head % (status, reason.partition(b":")[0], len(reason)) + reason)
        self._close()


def _body_len(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Bytes of the body; None: chunked. Raises ValueError for a number that no body can have."""
    said = dict(headers)  # the parser refuses a length that is there twice, or beside chunks
    length = said.get(b"content-length")
    if length is None or b"transfer-encoding" in said:
        return None if b"transfer-encoding" in said else 0
    size = whole_number(length) if len(length) <= 20 else None
    if size is None:
        raise ValueError("content-length is not a valid length of a body")
    return size
