"""The outer ASGI application. While the model loads it answers 503 with the reason; afterwards it calls the real one. It counts the
requests in progress, so that shutdown can wait for them, and refuse those that have no answer by then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang.srt.errors import OverloadError
from sglang.srt.server.http.wire import JsonResponse, anthropic_error, error_response, speaks_anthropic

_MESSAGE = "the server is starting: its model is being loaded"
_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta http-equiv="refresh" content="1"><title>sglang</title></head>
<body style="font: 1rem system-ui, sans-serif; text-align: center; padding-top: 40vh"><p role="status">The model is being loaded \xe2\x80\xa6</p></body></html>
"""
"""for somebody who opens the address meanwhile: it becomes the page when that is there"""


class RootPath:
    """Takes `root_path` off the paths of requests, for proxies that leave it there. Those that take it off themselves are served as
    well."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._prefix = f"{root_path}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self._prefix) > 1 and scope["type"] == "http" and scope["path"].startswith(self._prefix):
            scope["path"] = scope["path"][len(self._prefix) - 1 :]
        await self._app(scope, receive, send)


class _Visit:
    """One HTTP request. `has_begun`: its response is on its way. `is_over`: its time was up before."""

    __slots__ = ("_send", "has_begun", "is_over")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.is_over = False

    async def send(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)


class OuterApp:
    """The application around the real one, `app`, which is set when the model is loaded."""

    def __init__(self) -> None:
        self.app: ASGIApp = _starting
        self._visits: dict[asyncio.Task[object], _Visit] = {}
        self._is_closing = False

    @property
    def num_inside(self) -> int:
        """HTTP requests that have no answer, or not all of it."""
        return len(self._visits)

    def send_away(self) -> None:
        """Answers 503 to all requests inside whose response has not begun, whatever their state. The others have until
        uvicorn cancels them."""
        self._is_closing = True
        for task, visit in self._visits.items():
            if not visit.has_begun and not visit.is_over:
                visit.is_over = True
                task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(send)
        with self._inside(visit) as task:
            try:
                await self.app(scope, receive, visit.send)
            except asyncio.CancelledError:
                if self._is_closing and visit.has_begun:
                    return  # its client did not read to the end in time
                if not visit.is_over:
                    raise
                _uncancel(task)
                error = OverloadError("the server is shutting down")
                await error_response(error, scope["path"])(scope, receive, send)

    @contextmanager
    def _inside(self, visit: _Visit) -> Iterator[asyncio.Task[object]]:
        task = asyncio.current_task()
        assert task is not None
        self._visits[task] = visit
        try:
            yield task
        finally:
            del self._visits[task]


def _uncancel(task: asyncio.Task[object]) -> None:
    """Lets the task go on."""
    if hasattr(task, "uncancel"):  # Python 3.11
        task.uncancel()


async def _starting(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path.endswith("/") and b"text/html" in dict(scope["headers"]).get(b"accept", b""):
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        headers = {"Retry-After": "1", "Cache-Control": "no-store", "Content-Security-Policy": policy}
        await Response(_PAGE, 503, headers, "text/html")(scope, receive, send)
        return
    body: dict[str, object] = {"error": {"message": _MESSAGE}}
    if path.startswith("/health"):
        body = {"status": "starting"}
    elif speaks_anthropic(path):
        body = anthropic_error(OverloadError(_MESSAGE))
    elif path.startswith("/v1"):
        body = {"error": {"message": _MESSAGE, "type": "ServiceUnavailableError", "param": None, "code": 503}}
    await JsonResponse(body, 503, {"Retry-After": "1"})(scope, receive, send)
