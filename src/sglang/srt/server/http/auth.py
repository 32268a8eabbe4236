"""Authentication and the limit of a body's size. Pure ASGI, before anything reads the body: ApiKeys identifies the client (keys.py),
RequestScopes opens the scope that carries this identity."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from hmac import compare_digest
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang.srt.errors import AdminOnlyError, ApiKeyError, BodyTooLargeError, RequestError
from sglang.srt.server.http.journal import HEADER as JOURNAL_HEADER
from sglang.srt.server.http.journal import Journal, open_journal
from sglang.srt.server.http.keys import Identity, KeyRing
from sglang.srt.server.http.request_scope import RequestScope, current_scope, enter_scope, leave_scope
from sglang.srt.server.http.wire import error_response
from sglang.srt.server.http.wire_numbers import MAX_DIGITS, decimal_number, whole_number
from sglang.srt.server.limits.body_room import LEASE, ROOM, BodyRoom, release_body

Handler = Callable[[Request], Awaitable[Response]]

TIMEOUT_HEADER = b"x-request-timeout"
ADDRESS_HEADER = b"x-sglang-address"
BACKGROUND_HEADER = b"x-sglang-background"
"""of a request of a batch, from our gateway"""
TOKEN_HEADER = b"x-sglang-gateway"
MAX_TRACEPARENT = 256
MAX_VARIABLE = 300
_RUN = re.compile(rb"[0-9a-f]{1,32}/[0-9]{1,6}(?:\.[0-9]{1,6}){0,24}")
OPEN_PATHS = frozenset({"/health", "/health_generate", "/metrics"})
"""what needs no key: probes and scrapers have none"""
_HERE = ("127.", "::1", "::ffff:127.")
"""how the addresses of this machine begin: its programs, and a proxy on it, for requests through that proxy"""
IDENTITY = "sglang.identity"
"""key of an ASGI scope"""


class ApiKeys:
    """Puts an Identity into the scope. Answers 401 where keys are configured and the request carries none of them."""

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: frozenset[str] = frozenset()) -> None:
        """`open_paths`: what needs no key besides OPEN_PATHS."""
        self._app = app
        self._keys = keys
        self._open = OPEN_PATHS | open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope[IDENTITY] = self._identity(scope)
            except ApiKeyError as error:
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _identity(self, scope: Scope) -> Identity:
        try:
            found = self._keys.identify(scope["headers"])
        except ApiKeyError:
            if self._keys.is_needed:
                raise
            found = None
        if found is None and self._keys.is_needed and scope["method"] != "OPTIONS" and scope["path"] not in self._open:
            raise ApiKeyError("a valid API key is needed: Authorization: Bearer KEY")
        return found or self._keys.stranger


def operator_only(handler: Handler) -> Handler:
    """Restricts an endpoint that concerns the requests of others: it needs the admin key where there is one, or where there are
    several clients. The check is at the route, so that no spelling of a path gets around it."""

    @wraps(handler)
    async def checked(request: Request) -> Response:
        if not current_scope().is_operator:
            raise ApiKeyError(f"{request.url.path.strip()} concerns all clients and needs the admin key (--admin-api-key)")
        return await handler(request)

    return checked


def need_admin(what: str) -> None:
    """For requests whose body alone shows that they are the operator's: raises AdminOnlyError for other clients."""
    if not current_scope().is_operator:
        raise AdminOnlyError(f"{what} needs the admin key (--admin-api-key): Authorization: Bearer KEY")


class GatewayOnly:
    """Lets in what brings the gateway's token: other programs of the network, or of this machine, can connect, too."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        brought = next((value for name, value in scope.get("headers", ()) if name == TOKEN_HEADER), b"")
        if scope["type"] == "http" and not compare_digest(brought, self._token):
            await _refuse(AdminOnlyError("this server is a replica: send requests to its gateway"), scope, receive, send)
            return
        await self._app(scope, receive, send)


class RequestScopes:
    """Opens a RequestScope for each HTTP request, around whatever identity was found before. `behind_gateway`: nobody but our gateway
    can connect, and it says in ADDRESS_HEADER where a request comes from."""

    def __init__(self, app: ASGIApp, behind_gateway: bool = False) -> None:
        self._app = app
        self._behind_gateway = behind_gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity: Identity = scope.get(IDENTITY) or Identity()
        address = (scope.get("client") or ("",))[0]
        address = "" if address.startswith(_HERE) else address
        found = RequestScope(time.monotonic(), identity.client, address=address, is_operator=identity.is_operator)
        for name, value in scope["headers"]:
            if name == b"traceparent":
                found.trace = value[:MAX_TRACEPARENT].decode("latin-1")
            elif name == b"x-sglang-run":
                found.run = value.decode("latin-1") if _RUN.fullmatch(value) else ""
            elif name == b"x-sglang-variable":
                found.variable = unquote(value[:MAX_VARIABLE].decode("latin-1"))
            elif name == TIMEOUT_HEADER:
                found.timeout = _seconds(value)
                if found.timeout is None:
                    error = RequestError("X-Request-Timeout must be a number of seconds above 0")
                    await _refuse(error, scope, receive, send)
                    return
            elif name == ADDRESS_HEADER and self._behind_gateway:
                found.address = value.decode("latin-1")
            elif name == BACKGROUND_HEADER and self._behind_gateway:
                found.is_background = True
            elif name == JOURNAL_HEADER and self._behind_gateway:
                found.journal = open_journal(value)
        token = enter_scope(found)
        try:
            if found.journal is not None and found.journal.received_bytes:
                try:
                    scope, receive = await _read_journal(found.journal, scope, receive)
                except RequestError as error:
                    await _refuse(error, scope, receive, send)
                    return
            await self._app(scope, receive, send)
        finally:
            leave_scope(token)


async def _read_journal(journal: Journal, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """Reads what stands before the body. Returns the request without it."""
    size, pieces, num_read = journal.received_bytes, [], 0
    more = True
    while num_read < size and more:
        message = await receive()
        pieces.append(message.get("body", b""))
        num_read += len(pieces[-1])
        more = message.get("more_body", False)
    data = b"".join(pieces)
    journal.read(data[:size])
    rest: list[Message] = [{"type": "http.request", "body": data[size:], "more_body": more}]

    async def receive_rest() -> Message:
        return rest.pop() if rest else await receive()

    lengths = {b"content-length": lambda value: b"%d" % max(int(value) - size, 0)}
    headers = [(name, lengths[name](value) if name in lengths else value) for name, value in scope["headers"]]
    return {**scope, "headers": headers}, receive_rest


def _seconds(value: bytes) -> float | None:
    seconds = decimal_number(value.strip())
    return seconds if seconds is not None and 0 < seconds < 1e9 else None


class BodyLimit:
    """Answers 413 when a body is, or turns out to be, longer than allowed. What is not small is read where there is room for it
    (body_room.py), which is taken back when the request ends."""

    def __init__(self, app: ASGIApp, max_bytes: int, others: Mapping[str, int] | None = None) -> None:
        """`others`: the limits of paths that have one of their own, by path."""
        self._app = app
        self._max = max_bytes
        self._others = others or {}
        self._room = BodyRoom(max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, is_announced = self._others.get(scope["path"], self._max), False
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not _fits(value, most):
                    await _refuse(BodyTooLargeError(most), scope, receive, send)
                    return
                is_announced = True  # the parser ends the body there, and takes no length beside chunks
        scope[ROOM] = self._room
        try:
            await self._app(scope, receive if is_announced else _limited(receive, most), send)
        finally:
            if LEASE in scope:
                release_body(scope)


def _limited(receive: Receive, most: int) -> Receive:
    """The same messages, until their bodies are more than `most` bytes together."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > most:
                raise BodyTooLargeError(most)
        return message

    return limited


def _fits(length: bytes, most: int) -> bool:
    if length.isdigit() and len(length) <= MAX_DIGITS:
        return int(length) <= most
    size = whole_number(length.strip())
    return size is not None and size <= most


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in the shape of the route."""
    response = error_response(error, scope["path"])
    if error.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    elif error.status_code == 413:
        response.headers["Connection"] = "close"
    await response(scope, receive, send)
