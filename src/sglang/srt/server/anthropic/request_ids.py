"""The header by which Anthropic's clients name a request in their errors and logs."""

from __future__ import annotations

from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang.srt.server.http.wire import speaks_anthropic


class RequestIds:
    """Gives each answer of Anthropic's routes, errors among them, a `request-id`. Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not speaks_anthropic(scope["path"]):
            await self._app(scope, receive, send)
            return
        name = f"req_{uuid4().hex[:24]}".encode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"request-id", name)]}
            await send(message)

        await self._app(scope, receive, named)
