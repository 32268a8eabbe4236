"""Hands a request on to a server, and the answer back, byte by byte.

Headers that concern one connection stay where they are, and so do those that browsers add, which have been checked at the door. A
client that leaves closes the connection to the server as well, which aborts its request there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from urllib.parse import quote

import msgspec
from starlette.types import Receive, Scope, Send

from sglang.cluster.upstream import Exchange, Head, Headers, Upstream, UpstreamLost
from sglang.srt.errors import EngineDeadError
from sglang.srt.server.http.auth import ADDRESS_HEADER
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
STAYS_HERE = OF_ONE_CONNECTION | OF_BROWSERS | {ADDRESS_HEADER}
NOT_BACK = (OF_ONE_CONNECTION - {b"content-length"}) | {b"date", b"server"}
_LOCAL = ("127.", "::1", "::ffff:127.")


class NotBegun(Exception):
    """The server was lost before any of its answer had come: the request may be sent to another."""


def headers_for(scope: Scope) -> Headers:
    """What the server is told."""
    headers = [(name, value) for name, value in scope["headers"] if name not in STAYS_HERE]
    address = (scope.get("client") or ("",))[0]
    if address and not address.startswith(_LOCAL):
        headers.append((ADDRESS_HEADER, address.encode("latin-1")))
    return [(b"host", b"localhost"), *headers]


def target_of(scope: Scope, path: str | None = None) -> bytes:
    """The path and query as they came, or another path with that query."""
    raw = scope.get("raw_path") if path is None else None
    target: bytes = raw if raw else quote(path if path is not None else scope["path"], safe="/:@!$&'()*+,;=~-._%").encode()
    target = target.partition(b"?")[0]
    return target + b"?" + scope["query_string"] if scope["query_string"] else target


async def relay(
    scope: Scope,
    receive: Receive,
    send: Send,
    upstream: Upstream,
    target: bytes,
    body: Iterable[bytes | bytearray] = (),
    on_sent: Callable[[], None] = lambda: None,
) -> int:
    """Sends a request, whose body has been read, and its answer. Returns the status; 499 if the client left, 502 if the answer broke
    off, and with it the connection to the client. Raises NotBegun. `on_sent` is called when the server has the request."""
    exchange = upstream.exchange()
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        exchange.close()

    watcher = asyncio.create_task(watch())
    try:
        try:
            head = await exchange.send(scope["method"], target, headers_for(scope), body)
        except UpstreamLost as error:
            if has_left:
                return 499
            raise NotBegun from error
        on_sent()
        await send({"type": "http.response.start", "status": head.status, "headers": _headers_back(head)})
        await _body(exchange, scope, send, head, lambda: has_left)
        return head.status
    except UpstreamLost:
        return 502
    except OSError:
        return 499  # the client hung up in the middle of a write
    finally:
        watcher.cancel()
        exchange.close()


def _headers_back(head: Head) -> Headers:
    return [(name, value) for name, value in head.headers if name not in NOT_BACK]


async def _body(exchange: Exchange, scope: Scope, send: Send, head: Head, has_left: Callable[[], bool]) -> None:
    """A stream whose server is lost ends with an error event, as that of a server without a scheduler; any other answer breaks off."""
    end = b"\n\n"
    try:
        while piece := await exchange.read():
            end = piece[-2:]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except UpstreamLost:
        if has_left():
            return
        if not any(name == b"content-type" and b"event-stream" in value for name, value in head.headers):
            raise
        last = (b"" if end == b"\n\n" else b"\n\n") + _lost_event(scope["path"])
        await send({"type": "http.response.body", "body": last, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _lost_event(path: str) -> bytes:
    error = EngineDeadError("the server of this model died in the middle of the answer; send the request again")
    if speaks_anthropic(path):
        return b"event: error\ndata: " + msgspec.json.encode(anthropic_error(error)) + b"\n\n"
    return error_event(error, openai=path.startswith("/v1")) + DONE
