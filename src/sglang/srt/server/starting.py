"""What the address answers while the model loads: 503, and why. `Door` is the ASGI application that uvicorn knows; the real one
takes its place when there is one."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from sglang.srt.server.responses import JsonResponse

_MESSAGE = "the server is starting: its model is being loaded"


class Door:
    """Set `app` to open it."""

    def __init__(self) -> None:
        self.app: ASGIApp = _starting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def _starting(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    path = scope["path"]
    body: dict[str, object] = {"error": {"message": _MESSAGE}}
    if path.startswith("/health"):
        body = {"status": "starting"}
    elif path.startswith("/v1"):
        body = {"error": {"message": _MESSAGE, "type": "ServiceUnavailableError", "param": None, "code": 503}}
    await JsonResponse(body, 503, {"Retry-After": "1"})(scope, receive, send)
