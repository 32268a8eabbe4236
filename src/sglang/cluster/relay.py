"""Hands a request on to a server, and the answer back, byte by byte; and goes on with another server when one is lost.

    lost before any of the answer came      the request is sent again if it may be done twice
    lost in the middle of a stream          it is sent again with the outputs so far before its body: the next server makes the same
                                            events of them, which are dropped here, and goes on (srt/server/http/journal.py)

Headers that concern one connection stay where they are, and so do those that browsers add, which have been checked on arrival. A
client that leaves closes the connection to the server as well, which aborts its request there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from secrets import token_hex
from types import TracebackType
from urllib.parse import quote

import msgspec
from starlette.types import Receive, Scope, Send

from sglang.cluster.upstream import Exchange, Head, Headers, Upstream, UpstreamLost
from sglang.common.sse import EventSplitter
from sglang.srt.errors import SglangError
from sglang.srt.server.http.auth import ADDRESS_HEADER, BACKGROUND_HEADER, TOKEN_HEADER
from sglang.srt.server.http.journal import BESIDE, LOST, OUTPUT
from sglang.srt.server.http.journal import HEADER as JOURNAL_HEADER
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.http.wire import DONE, anthropic_error, error_event, speaks_anthropic

OF_ONE_CONNECTION = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"),
        b"content-length",  # told anew
    }
)
OF_BROWSERS = frozenset(
    {
        *(
            b"host",
            b"origin",
            b"referer",
            b"cookie",
            b"sec-fetch-site",
            b"sec-fetch-mode",
            b"sec-fetch-dest",
            b"sec-fetch-user",
        ),
        *(b"access-control-request-method", b"access-control-request-headers"),
    }
)
STAYS_HERE = OF_ONE_CONNECTION | OF_BROWSERS | {ADDRESS_HEADER, BACKGROUND_HEADER, JOURNAL_HEADER, TOKEN_HEADER}
NOT_BACK = (OF_ONE_CONNECTION - {b"content-length"}) | {b"date", b"server"}
_LOCAL = ("127.", "::1", "::ffff:127.")

GENERATING = ("/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""whose answers another server can go on with"""
PURE = (*GENERATING, "/v1/embeddings", "/encode", "/v1/score", "/v1/rerank", "/score_choices", "/tokenize", "/detokenize")
"""what changes nothing where it is done, so that it may be done twice"""
HELD_BYTES = 1 << 20
"""an answer that is no stream begins when it is whole, or so long"""
KEPT_BYTES = 256 << 20
"""of the bodies of all requests together, and of the outputs of all streams"""
MAX_JOURNAL = 32 << 20
"""bytes of one stream's outputs; a longer one is not continued elsewhere"""


class Lost(Exception):
    """The server was lost. `may_go_on`: another one can be asked; `is_new`: since the one before, the answer has grown."""

    def __init__(self, may_go_on: bool, is_new: bool) -> None:
        super().__init__()
        self.may_go_on = may_go_on
        self.is_new = is_new


def headers_for(scope: Scope) -> Headers:
    """What the server is told."""
    headers = [(name, value) for name, value in scope["headers"] if name not in STAYS_HERE]
    address = (scope.get("client") or ("",))[0]
    if address and not address.startswith(_LOCAL):
        headers.append((ADDRESS_HEADER, address.encode("latin-1")))
    if current_scope().is_background:
        headers.append((BACKGROUND_HEADER, b"1"))
    return [(b"host", b"localhost"), *headers]


def target_of(scope: Scope, path: str | None = None) -> bytes:
    """The path and query as they came, or another path with that query. A path of ours is decoded: the server that decodes it once more
    must see the one that was checked here."""
    raw = scope.get("raw_path") if path is None else None
    target: bytes = raw if raw else quote(path if path is not None else scope["path"], safe="/:@!$&'()*+,;=~-._").encode()
    target = target.partition(b"?")[0]
    return target + b"?" + scope["query_string"] if scope["query_string"] else target


class KeptBodies:
    """Bodies that are kept until their answers have ended, for another server: so many bytes of them."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._left = max_bytes

    @contextlib.contextmanager
    def keep(self, body: Iterable[bytes | bytearray]) -> Iterator[bool]:
        """Whether there is room for one more."""
        size = sum(map(len, body))
        is_kept = size <= self._left
        self._left -= size if is_kept else 0
        try:
            yield is_kept
        finally:
            self._left += size if is_kept else 0


class JournalRoom:
    """Room for the outputs of all streams together. `left`: bytes."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.left = max_bytes


class Relay:
    """One request of a client, and its answer, whichever servers give it. `async with`: while it lasts, a client that leaves ends it."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        target: bytes,
        body: Iterable[bytes | bytearray],
        room: JournalRoom | None = None,
    ) -> None:
        """`body`: all of it; it is kept until the answer has ended. `room`: shared with other requests."""
        self._scope, self._receive, self._send = scope, receive, send
        self._target = target
        self.body = list(body)
        self.fingerprint = ""
        """of the server that has the request"""
        self._name, self._created = token_hex(16), int(time.time())
        self._exchange: Exchange | None = None
        self._outputs: list[bytes] = []
        self._outputs_bytes = 0
        self._room = room or JournalRoom()
        self._num_events = 0
        """that were sent since the last output"""
        self._has_head = self._is_stream = False
        self._is_within = False
        """whether the client has a part of an event"""
        self.has_left = False
        self.num_resumed = 0
        self._is_post = scope["method"] == "POST"
        self.can_continue = self._is_post and scope["path"] in GENERATING
        self.can_repeat = scope["method"] in ("GET", "HEAD") or (self._is_post and scope["path"] in PURE)

    async def __aenter__(self) -> Relay:
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        self._drop_outputs()
        self.body = []  # the cancelled watcher and this object hold each other until the collector comes
        if self._exchange is not None:
            self._exchange.close()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        if self._exchange is not None:
            self._exchange.close()

    @property
    def has_begun(self) -> bool:
        """The client has some of the answer."""
        return self._has_head

    def _is_alone(self) -> bool:
        return self.has_left

    @property
    def gone(self) -> asyncio.Task[None]:
        """Done when the client has left."""
        return self._watcher

    async def over(
        self, upstream: Upstream, on_sent: Callable[[], None] = lambda: None, on_outputs: Callable[[int], None] = lambda _: None
    ) -> int:
        """Sends the request to a server, and its answer to the client. Returns the status; 499 if the client left. Raises Lost where
        another server may go on. `on_sent` is called when the server has the request, `on_outputs` with the number of outputs that
        have come."""
        if self._is_alone():
            return 499
        exchange = self._exchange = upstream.exchange()
        num_before = len(self._outputs)
        try:
            head = await exchange.send(self._scope["method"], self._target, self._headers(), self._with_outputs())
            on_sent()
            if self._has_head and not (head.status == 200 and _is_stream(head)):
                raise UpstreamLost  # it is starting, or ending
            if self.can_continue and head.status == 200 and _is_stream(head):
                await self._stream(exchange, head, on_outputs)
            else:
                await self._whole(exchange, head)
            return head.status
        except UpstreamLost as error:
            if self._is_alone():
                return 499
            may_go_on = self.can_continue if self._has_head else self.can_repeat or not exchange.was_sent
            raise Lost(may_go_on, len(self._outputs) > num_before) from error
        except OSError:
            return 499  # the client hung up in the middle of a write
        finally:
            exchange.close()

    def _headers(self) -> Headers:
        headers = headers_for(self._scope)
        if self.can_continue:
            size = sum(map(len, self._outputs)) + len(self._outputs) - 1 if self._outputs else 0
            headers.append((JOURNAL_HEADER, b"%b %d %d" % (self._name.encode(), self._created, size)))
        return headers

    def _with_outputs(self) -> list[bytes | bytearray]:
        return [b"\n".join(self._outputs), *self.body] if self._outputs else self.body

    async def _begin(self, head: Head) -> None:
        if not self._has_head:
            self._has_head, self._is_stream = True, _is_stream(head)
            await self._send({"type": "http.response.start", "status": head.status, "headers": headers_back(head)})

    async def _give(self, data: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def forget_body(self) -> None:
        """There is no room to keep it: the request cannot be sent again."""
        self.body = []
        self.can_continue = self.can_repeat = False

    async def fail(self, error: SglangError) -> None:
        """No server goes on. A stream that has begun ends with an event; any other answer that has begun breaks off. Raises `error` if
        none has."""
        if not self._has_head:
            raise error
        if self._is_stream and not self.has_left:
            await self._end_with(error)

    async def _end_with(self, error: SglangError) -> None:
        await self._give((b"\n\n" if self._is_within else b"") + _lost_event(self._scope["path"], error))
        await self._give(b"", more=False)

    # --- an answer that is no stream, or none of ours -----------------------------------------------------------------------

    async def _whole(self, exchange: Exchange, head: Head) -> None:
        """What is short begins when all of it is there: until then another server can give it."""
        held: list[bytes] = []
        size, holds = 0, self.can_repeat and not _is_stream(head)
        last = b"\n\n"
        while piece := await exchange.read():
            held.append(piece)
            size += len(piece)
            if holds and not self._has_head and size <= HELD_BYTES:
                continue
            last = held[-1][-2:]
            await self._begin(head)
            self._is_within = last != b"\n\n"
            await self._give(b"".join(held))
            held.clear()
        await self._begin(head)
        await self._give(b"".join(held), more=False)

    # --- a stream -----------------------------------------------------------------------------------------------------------

    async def _stream(self, exchange: Exchange, head: Head, on_outputs: Callable[[int], None]) -> None:
        """Event by event: what a client has of an answer is whole events, and their outputs are known."""
        await self._begin(head)
        if self._outputs or self._num_events:
            self.num_resumed += 1
        blocks = _Blocks(len(self._outputs), self._num_events)
        while piece := await exchange.read():
            found, is_lost = blocks.read(piece)
            if blocks.outputs:
                on_outputs(len(blocks.outputs))
                self._keep(blocks.outputs)
                blocks.outputs.clear()
                self._num_events = 0
            self._num_events += blocks.num_events
            if found:
                await self._give(found)
            if is_lost:
                raise UpstreamLost
        await self._give(b"", more=False)

    def _keep(self, outputs: list[bytes]) -> None:
        """What another server would need to go on; a stream for which there is no room is not continued elsewhere."""
        size = sum(map(len, outputs))
        if not self.can_continue or self._outputs_bytes + size > MAX_JOURNAL or size > self._room.left:
            self.can_continue = False
            self._drop_outputs()
            return
        self._outputs += outputs
        self._outputs_bytes += size
        self._room.left -= size

    def _drop_outputs(self) -> None:
        self._room.left += self._outputs_bytes
        self._outputs_bytes = 0
        self._outputs.clear()


class _Blocks:
    """Sorts a stream of a server into what is for the client and what is for us. `num_outputs`, `num_events`: how many outputs, and events
    after them, the client's stream has from servers before: these are dropped."""

    def __init__(self, num_outputs: int, num_events: int) -> None:
        self._outputs_left, self._events_left = num_outputs, num_events
        self._events = EventSplitter()
        self.outputs: list[bytes] = []
        """new ones, of the piece that was read last"""
        self.num_events = 0
        """in that piece, after the last of them"""

    def read(self, piece: bytes) -> tuple[bytes, bool]:
        """The bytes for the client, and whether the server cannot go on."""
        self.num_events = 0
        found: list[bytes] = []
        for block in self._events.feed(piece):
            if block.startswith(OUTPUT):
                self._output(block[len(OUTPUT) :])
            elif block.startswith(BESIDE):
                found.append(block[len(BESIDE) :] + b"\n\n")
            elif block == LOST[:-2]:
                return b"".join(found), True
            elif self._outputs_left:
                pass
            elif self._events_left:
                self._events_left -= 1
            else:
                found.append(block + b"\n\n")
                self.num_events += 1
        return b"".join(found), False

    def _output(self, line: bytes) -> None:
        if self._outputs_left:
            self._outputs_left -= 1
        else:
            self.outputs.append(line)
            self.num_events = 0


def headers_back(head: Head) -> Headers:
    return [(name, value) for name, value in head.headers if name not in NOT_BACK]


def _is_stream(head: Head) -> bool:
    return any(name == b"content-type" and b"event-stream" in value for name, value in head.headers)


def _lost_event(path: str, error: SglangError) -> bytes:
    if speaks_anthropic(path):
        return b"event: error\ndata: " + msgspec.json.encode(anthropic_error(error)) + b"\n\n"
    return error_event(error, openai=path.startswith("/v1")) + DONE
