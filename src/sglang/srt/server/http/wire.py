"""Responses: JSON bodies, event streams, errors, and the handling of clients that disconnect.

Errors have OpenAI's format under /v1 and a plain one elsewhere; neither reveals internals of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sglang.srt.errors import (
    ContextLengthError,
    DeadlyRequestError,
    EngineDeadError,
    OverloadError,
    RequestError,
    SglangError,
)
from sglang.srt.server.calls import Call
from sglang.srt.server.generate_req import GenerateReq, client_names
from sglang.srt.server.http.journal import BESIDE, LOST
from sglang.srt.server.http.json_pieces import encode_json, json_pieces
from sglang.srt.server.http.request_scope import new_name
from sglang.srt.server.limits.body_room import LEASE, release_body
from sglang.srt.server.tokenizer_manager import TokenizerManager

DONE = b"data: [DONE]\n\n"
FIRST_OUTPUT_SECONDS = 10.0
"""how long a stream may wait for its first output before its headers are sent; until then an error has its own status"""
KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": keep-alive\n\n"
"""a comment of the event stream, sent when there was nothing to say for so long: proxies cut silent connections"""

CLIENT_GONE = Response(status_code=499)
"""the answer to a client that has disconnected: it is never read"""

ON_GONE = "sglang.on_gone"
"""key of an ASGI scope: takes what to call when the client hangs up"""

LARGE_EVENT = 4096
"""bytes from which on others have their turn after it: more such pieces may be at hand"""
MAX_MESSAGE = 2000
"""characters of an error"""

T = TypeVar("T")


class JsonResponse(Response):
    """Any data that msgspec encodes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode_json(content)


class LargeJsonResponse(Response):
    """Data that may be large (json_pieces.py): made while it is sent, as fast as the client takes it. What turns out to be one piece
    is sent with its length."""

    def __init__(self, content: Any) -> None:
        super().__init__(media_type="application/json")
        del self.headers["content-length"]
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = json_pieces(self._content)
        piece = next(pieces)
        following = next(pieces, None)
        if following is None:
            self.headers["content-length"] = str(len(piece))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while following is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)
                piece, following = following, next(pieces, None)
            await send({"type": "http.response.body", "body": piece, "more_body": False})
        except OSError:
            pass  # the client hung up in the middle of a write


class PlainRoute(Route):
    """A route that leaves errors to the application. Starlette's catch them as well, which every request and every event of a stream
    would pay for."""

    def __init__(self, path: str, handler: Callable[[Request], Awaitable[Response]], methods: list[str]) -> None:
        super().__init__(path, handler, methods=methods)

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            response = await handler(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = run


# --- errors -----------------------------------------------------------------------------------------------------------------


def status_of(error: SglangError) -> int:
    return int(getattr(error, "status_code", 500))


def message_of(error: SglangError) -> str:
    """The error's message for a client; it may repeat some of the client's words, but not all of them."""
    return _shown(str(error))


def _shown(text: str) -> str:
    """Short, and without halves of characters."""
    return text[:MAX_MESSAGE].encode(errors="replace").decode()


def error_body(error: SglangError, openai: bool) -> dict[str, Any]:
    if not openai:
        return {"error": {"message": message_of(error)}}
    param = _shown(error.param) if isinstance(error, RequestError) and error.param is not None else None
    kind = getattr(error, "err_type", "InternalServerError")
    code = getattr(error, "code", status_of(error))
    return {"error": {"message": message_of(error), "type": kind, "param": param, "code": code}}


_ANTHROPIC_KINDS = {
    **{401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"},
    **{503: "overloaded_error", 504: "timeout_error"},
}


def speaks_anthropic(path: str) -> bool:
    """Whether errors there have Anthropic's shape."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def request_id() -> dict[str, str]:
    """The header by which Anthropic's clients name a request in their errors and logs."""
    return {"request-id": f"req_{new_name()[:24]}"}


def anthropic_error(error: SglangError) -> dict[str, Any]:
    """The shape that clients of /v1/messages read."""
    message = _anthropic_length(error) if isinstance(error, ContextLengthError) else message_of(error)
    return anthropic_error_body(status_of(error), message, getattr(error, "details", None))


def anthropic_error_body(status: int, message: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    kind = _ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    found: dict[str, Any] = {"type": kind, "message": message}
    return {"type": "error", "error": found if details is None else {**found, "details": details}}


def _anthropic_length(error: ContextLengthError) -> str:
    """The error of a prompt that is too long, in words that agents recognize; they read its numbers to shorten the
    conversation."""
    if error.max_new_tokens is None:
        return f"prompt is too long: {error.prompt_len} tokens > {error.context_len - 1} maximum"
    return (
        f"input length and `max_tokens` exceed context limit: {error.prompt_len} + {error.max_new_tokens} > {error.context_len}, "
        "decrease input length or `max_tokens` and try again"
    )


def error_response(error: SglangError, path: str) -> Response:
    """What is told of an error that nobody handles any more. Its frames, which hold the body, end with it; else cycles of them would
    wait for the garbage collector, which counts objects and not bytes."""
    told: list[BaseException | None] = [error]
    seen: set[int] = set()  # errors may be each other's cause
    while told:
        one = told.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            told += (one.__cause__, one.__context__)
    headers = {"Retry-After": "1"} if status_of(error) == 503 else {}
    if speaks_anthropic(path):
        return JsonResponse(anthropic_error(error), status_of(error), headers | request_id())
    return JsonResponse(error_body(error, path.startswith("/v1")), status_of(error), headers)


def is_lost(error: SglangError) -> bool:
    """Whether another server could go on where this one cannot."""
    return isinstance(error, (EngineDeadError, OverloadError)) and not isinstance(error, DeadlyRequestError)


def error_event(error: SglangError, openai: bool) -> bytes:
    return b"data: " + encode_json(error_body(error, openai)) + b"\n\n"


# --- clients that leave -------------------------------------------------------------------------------------------------------


class ClientWatch:
    """Calls `cancel` once when the client of a request hangs up, until `end` is called. The body has been read.

    Our protocol calls back (protocol.py), which costs nothing while the client stays. Under any other one, such as that of a test, a
    task waits for the message that says so.
    """

    __slots__ = ("_cancel", "_task", "is_gone")

    def __init__(self, request: Request, cancel: Callable[[], object]) -> None:
        self.is_gone = False
        self._cancel: Callable[[], object] | None = cancel
        self._task: asyncio.Task[None] | None = None
        on_gone: Callable[[Callable[[], None]], None] | None = request.scope.get(ON_GONE)
        if on_gone is not None:
            on_gone(self._leave)
        else:
            self._task = asyncio.create_task(self._listen(request.receive))

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            self.is_gone = True
            cancel()

    def end(self) -> None:
        self._cancel = None
        if self._task is not None:
            self._task.cancel()


# --- generation -------------------------------------------------------------------------------------------------------------


async def _start(request: Request, manager: TokenizerManager, req: GenerateReq) -> Call | None:
    """Hands the request to the scheduler. What only was needed to make it is not kept while it runs. None if the client leaves while
    its images are fetched and decoded, which ends with it."""
    starting = manager.start(req)
    with client_names(req.names):
        call = await (starting if req.media is None else unless_gone(request, starting))
    if call is not None:
        req.forget_prompt()
        if LEASE in request.scope:
            release_body(request.scope)
    return call


async def answer(
    request: Request, manager: TokenizerManager, req: GenerateReq, collect: Callable[[Call], Awaitable[T]]
) -> T | None:
    """Runs a call to its end, unless the client leaves: then its sequences are aborted and the answer is None."""
    call = await _start(request, manager, req)
    if call is None:
        return None
    watch = ClientWatch(request, call.cancel)
    try:
        with client_names(req.names):
            reply = await collect(call)
        return None if watch.is_gone else reply
    finally:
        watch.end()
        call.cancel()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, which is cancelled when the client leaves: then it is None."""
    task = asyncio.ensure_future(work)
    watch = ClientWatch(request, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if watch.is_gone:
            return None
        raise
    finally:
        watch.end()
        task.cancel()


async def stream(
    request: Request,
    manager: TokenizerManager,
    req: GenerateReq,
    events: Callable[[Call], AsyncIterator[bytes]],
    openai: bool,
    write_error: Callable[[SglangError], bytes] | None = None,
    tail: bytes = DONE,
    keep_alive: bytes = KEEP_ALIVE,
) -> Response:
    """Starts a call and answers with its events, then `tail`. An error before the first output is raised; a later one is an
    event, by `write_error` or in the usual shape. `keep_alive` is sent when there is nothing to say for a while."""
    call = await _start(request, manager, req)
    if call is None:
        return CLIENT_GONE
    watch = ClientWatch(request, call.cancel)
    try:
        with client_names(req.names):
            await call.ready(FIRST_OUTPUT_SECONDS)
    except BaseException:
        watch.end()
        call.cancel()
        raise

    def write(error: SglangError) -> bytes:
        if isinstance(error, RequestError):
            error.rename(req.names)
        return write_error(error) if write_error is not None else error_event(error, openai)

    return EventStream(call, events(call), watch, write, tail, keep_alive)


class EventStream(Response):
    """Server-sent events of one call, ended by `tail`. `watch` aborts the call as soon as the client hangs up. An event may come
    as several pieces. The next is made when the client has taken those before, but for what fits in the buffers on the way."""

    media_type = "text/event-stream"

    def __init__(
        self,
        call: Call,
        events: AsyncIterator[bytes],
        watch: ClientWatch,
        write_error: Callable[[SglangError], bytes],
        tail: bytes,
        keep_alive: bytes,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._call = call
        self._events = events
        self._watch = watch
        self._write_error = write_error
        self._tail = tail
        self._alive = keep_alive if call.journal is None else BESIDE + keep_alive
        self._num_sent = 0
        self._is_within_event = False
        self._silence: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    def _with_journal(self, event: bytes) -> bytes:
        """Behind a gateway, the outputs that an event was made of stand before it."""
        lines = self._call.journal
        if not lines or self._is_within_event:
            return event
        before = b"".join(lines)
        lines.clear()
        return before + event

    def _keep_alive(self, send: Send, num_before: int = -1) -> None:
        """Sends a comment, or an event that says nothing, if nothing has been sent since `num_before`; looks again after a while."""
        if self._num_sent == num_before and not self._is_within_event and (self._comment is None or self._comment.done()):
            self._comment = asyncio.create_task(self._send_comment(send))
        self._silence = asyncio.get_running_loop().call_later(KEEP_ALIVE_SECONDS, self._keep_alive, send, self._num_sent)

    async def _send_comment(self, send: Send) -> None:
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": self._alive, "more_body": True})

    def _end_keep_alive(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        if self._comment is not None:
            self._comment.cancel()

    async def _send_events(self, send: Send) -> None:
        """Sends events until they end or the client disconnects."""
        async for event in self._events:
            self._num_sent += 1
            event = self._with_journal(event)
            if not event.endswith(b"\n\n"):
                self._is_within_event = True
                await send({"type": "http.response.body", "body": event, "more_body": True})
            else:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                self._is_within_event = False
            if len(event) > LARGE_EVENT:
                if self._watch.is_gone:
                    break
                await self._call.share.give_way()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._keep_alive(send)
            try:
                await self._send_events(send)
            except SglangError as error:
                if self._call.journal is not None and is_lost(error):
                    await send({"type": "http.response.body", "body": LOST, "more_body": False})
                    return
                await send({"type": "http.response.body", "body": self._write_error(error), "more_body": True})
            finally:
                self._end_keep_alive()
            await send({"type": "http.response.body", "body": self._tail, "more_body": False})
        except OSError:
            pass  # the client hung up in the middle of a write
        finally:
            self._watch.end()
            self._call.cancel()
            with contextlib.suppress(RuntimeError):
                await self._events.aclose()  # type: ignore[attr-defined]
