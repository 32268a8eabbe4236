"""Who may ask: API keys as bearer tokens, and how large a question may be. Pure ASGI, before anything reads the body."""

from __future__ import annotations

import hashlib
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang.srt.errors import RequestError
from sglang.srt.server.request_scope import RequestScope, enter_scope, leave_scope
from sglang.srt.server.responses import JsonResponse, error_response

TIMEOUT_HEADER = b"x-request-timeout"
OPEN_PATHS = ("/health", "/metrics")
"""prefixes that need no key: probes and scrapers have none"""

ADMIN_PATHS = frozenset({"/flush_cache", "/pause_generation", "/continue_generation", "/start_profile", "/stop_profile"})
"""what concerns other people's requests; the admin key is needed where one is set"""
IS_ADMIN = "sglang.is_admin"
"""key of an ASGI scope: whether the request carries the admin key, if there is one"""


class ApiKeys:
    """Answers 401 unless the request carries a key. With no keys at all everybody may ask."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], admin_key: str | None) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in keys)
        self._admin = admin_key.encode() if admin_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._allowed(scope):
            scope[IS_ADMIN] = self._is_admin(scope)
            await self._app(scope, receive, send)
            return
        await _refuse(scope, receive, send, 401, "a valid API key is needed: Authorization: Bearer KEY")

    def _allowed(self, scope: Scope) -> bool:
        path = scope["path"]
        if scope["method"] == "OPTIONS" or path.startswith(OPEN_PATHS):
            return True
        admin_only = self._admin is not None and path in ADMIN_PATHS
        if not self._keys and not admin_only:
            return True
        given = _bearer(scope)
        accepted = () if admin_only else self._keys
        if self._admin is not None:
            accepted = (*accepted, self._admin)
        # every key is compared, in constant time: how long it takes says nothing
        matches = [hmac.compare_digest(given, key) for key in accepted]
        return any(matches)

    def _is_admin(self, scope: Scope) -> bool:
        return self._admin is None or (scope["type"] == "http" and hmac.compare_digest(_bearer(scope), self._admin))


def need_admin(scope: Scope, what: str) -> None:
    """For what only the body tells to be the operator's. Raises AdminOnlyError without the admin key, where there is one."""
    if not scope.get(IS_ADMIN, True):
        raise AdminOnlyError(f"{what} needs the admin key: Authorization: Bearer KEY")


class AdminOnlyError(RequestError):
    status_code = 403
    err_type = "permission_error"


def _bearer(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = value.partition(b" ")
            return token.strip() if kind.lower() == b"bearer" else b""
        if name == b"x-api-key":  # Anthropic's clients
            return bytes(value.strip())
    return b""


class RequestScopes:
    """Opens a scope for each HTTP request. With `by_key`, requests of one API key are one client."""

    def __init__(self, app: ASGIApp, by_key: bool) -> None:
        self._app = app
        self._by_key = by_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = RequestScope(time.monotonic())
        for name, value in scope["headers"]:
            if name == b"authorization" and self._by_key:
                found.key = hashlib.sha256(value).hexdigest()[:12]
            elif name == b"traceparent":
                found.trace = value.decode("latin-1")
            elif name == TIMEOUT_HEADER:
                found.timeout = _seconds(value)
                if found.timeout is None:
                    error = RequestError("X-Request-Timeout must be a number of seconds above 0")
                    await error_response(error, scope["path"])(scope, receive, send)
                    return
        token = enter_scope(found)
        try:
            await self._app(scope, receive, send)
        finally:
            leave_scope(token)


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 < seconds < 1e9 else None


class BodyTooLargeError(RequestError):
    status_code = 413

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is longer than {max_bytes} bytes")


class BodyLimit:
    """Answers 413 when a body is, or turns out to be, longer than allowed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > self._max):
                await self._too_large(scope, receive, send)
                return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._max:
                    raise BodyTooLargeError(self._max)
            return message

        await self._app(scope, limited, send)

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _refuse(scope, receive, send, 413, str(BodyTooLargeError(self._max)))


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
    error: dict[str, object] = {"message": message}
    if scope["path"].startswith("/v1"):
        kind = "authentication_error" if status == 401 else RequestError.err_type
        error |= {"type": kind, "param": None, "code": status}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Connection": "close"}
    await JsonResponse({"error": error}, status, headers)(scope, receive, send)
