"""One request of a batch, sent to the application itself: no connection, no key, and in the name of who sent the batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message

from sglang.common.batch_run import NoAnswer
from sglang.srt.server.http.request_scope import RequestScope, enter_scope, leave_scope

Headers = list[tuple[bytes, bytes]]


class RowCalls:
    """`app`: behind what checks hosts and keys. `headers`: what a request of an owner needs besides, by which a gateway's servers know
    whose it is; None where the owner's key is gone."""

    def __init__(self, app: ASGIApp, headers: Callable[[str], Headers | None] = lambda owner: []) -> None:
        self._app, self._headers = app, headers

    async def send(self, owner: str, path: str, body: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer. Raises NoAnswer."""
        more = self._headers(owner)
        if more is None:
            raise NoAnswer("invalid_api_key", "the API key of this batch is not known any more")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
            **{"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers},
            **{"client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0)},
        }
        answer = _Answer(body)
        token = enter_scope(RequestScope(time.monotonic(), owner, is_operator=False, is_background=True))
        try:
            await self._app(scope, answer.receive, answer.send)
        finally:
            leave_scope(token)
        if not answer.is_complete:
            raise NoAnswer("server_error", "the server ended before it had answered")
        return answer.status, b"".join(answer.pieces)


class _Answer:
    """The other end of a request."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 0
        self.pieces: list[bytes] = []
        self.is_complete = False

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # nobody hangs up
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.pieces.append(bytes(message.get("body", b"")))
            self.is_complete = not message.get("more_body", False)
