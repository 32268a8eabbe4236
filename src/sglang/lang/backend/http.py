"""The HTTP client of the language: one connection pool per process, time-outs, retries before the first byte of an answer.

A generation changes nothing on the server, so a request can be repeated after a broken connection; once an answer has begun it is
not repeated. Every failure is raised as a BackendError.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from sglang.lang.backend.transport import PlainTransport
from sglang.lang.concurrency.background import IO, left_by_parent
from sglang.lang.concurrency.place import place_headers
from sglang.lang.errors import (
    BackendConnectionError,
    BackendError,
    BackendTimeoutError,
    BadReplyError,
    RequestRefusedError,
    ServerError,
)

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
_JSON = (b"Content-Type", b"application/json; charset=utf-8")


@dataclass(frozen=True)
class HttpPolicy:
    """Time-outs, concurrency and retries. `timeout`: seconds without a byte of the answer; `max_connections`: requests in flight (more
    wait their turn here, first come first served); `retries`: after a failed connection or a 503."""

    timeout: float = 600.0
    connect_timeout: float = 10.0
    max_connections: int = 256
    retries: int = 4
    first_delay: float = 0.1
    max_delay: float = 8.0


class _Session:
    """A client and the limit of its requests in flight; belongs to one event loop of one process."""

    def __init__(self, client: httpx.AsyncClient, limit: int) -> None:
        self.client = client
        self.turns = asyncio.Semaphore(limit)
        self.pid = os.getpid()
        self._heads: dict[str, tuple[httpx.URL, list[tuple[bytes, bytes]]]] = {}

    def post(self, url: str, payload: Any) -> httpx.Request:
        """The same request as client.build_request makes. The URL and the client's headers are put together once: that takes
        longer than many an answer. A server that has set cookies gets them, the usual way."""
        content = json.dumps(payload).encode()
        if self.client.cookies:
            return self.client.build_request("POST", url, content=content, headers=[_JSON, *place_headers()])
        if url not in self._heads:
            made = self.client.build_request("POST", url)
            self._heads[url] = made.url, [pair for pair in made.headers.raw if pair[0] != b"Content-Length"] + [_JSON]
        whole_url, headers = self._heads[url]
        extensions = {"timeout": self.client.timeout.as_dict()}
        return httpx.Request("POST", whole_url, headers=headers + place_headers(), content=content, extensions=extensions)


class HttpServer:
    """One server, by its base URL. Its coroutines run on IO."""

    def __init__(self, base_url: str, api_key: str | None, verify: str | bool | None, policy: HttpPolicy) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{base_url!r} is not an http(s) URL")
        self.base_url = base_url.rstrip("/")
        self.policy = policy
        self._verify = verify
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: _Session | None = None

    def _open(self) -> _Session:
        if self._session is None or self._session.pid != os.getpid():
            left_by_parent.append(self._session)
            client = httpx.AsyncClient(
                transport=self._transport(),
                limits=httpx.Limits(max_keepalive_connections=self.policy.max_connections),
                headers=self._headers,
                timeout=httpx.Timeout(self.policy.timeout, connect=self.policy.connect_timeout, pool=None),
            )
            self._session = _Session(client, self.policy.max_connections)
            IO.at_close(client.aclose)
        return self._session

    def _transport(self) -> httpx.AsyncBaseTransport | None:
        """Ours for a server that is reached directly; httpx's own (None) with TLS, or a proxy in between."""
        keep = self.policy.max_connections
        parts = urlsplit(self.base_url)
        if parts.scheme == "http" and (parts.hostname in _LOOPBACK or not _has_proxy(parts)):
            return PlainTransport(parts.hostname or "", parts.port or 80, keep)
        if parts.scheme == "http" or self._verify is None:
            return None
        verify = ssl.create_default_context(cafile=self._verify) if isinstance(self._verify, str) else self._verify
        return httpx.AsyncHTTPTransport(verify=verify, limits=httpx.Limits(max_keepalive_connections=keep))

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.client.aclose()

    # --- calls ---------------------------------------------------------------------------------------------------------------

    async def get(self, path: str) -> Any:
        """The JSON answer. Raises BackendError."""
        return await self._whole("GET", path, None)

    async def post(self, path: str, payload: Any = None) -> Any:
        """The JSON answer (None when it is empty or plain text). Raises BackendError."""
        return await self._whole("POST", path, payload)

    async def _whole(self, method: str, path: str, payload: Any) -> Any:
        session = self._open()
        async with session.turns:
            response = await self._send(session, method, path, payload)
            try:
                body = await response.aread()
            except httpx.HTTPError as error:
                raise self._broken(error, "broke off in the middle of an answer") from error
            finally:
                await response.aclose()
        if response.status_code != 200:
            raise _refusal(response.status_code, body)
        if not response.headers.get("content-type", "").startswith("application/json"):
            return None
        try:
            return json.loads(body)
        except ValueError as error:
            raise BadReplyError(f"{self.base_url}{path} did not answer with JSON: {error}") from error

    async def stream(self, path: str, payload: Any) -> AsyncGenerator[bytes, None]:
        """The bytes of the answer as they arrive. Raises BackendError; closing it closes the connection."""
        session = self._open()
        async with session.turns:
            response = await self._send(session, "POST", path, payload)
            try:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread())
                async for chunk in response.aiter_bytes():
                    yield chunk
            except httpx.HTTPError as error:
                raise self._broken(error, "broke off in the middle of a stream") from error
            finally:
                await response.aclose()

    # --- one request, and again ------------------------------------------------------------------------------------------------

    async def _send(self, session: _Session, method: str, path: str, payload: Any) -> httpx.Response:
        """Sends until the head of an answer is there."""
        url = self.base_url + path
        request = session.client.build_request(method, url) if payload is None else session.post(url, payload)
        for attempt in range(self.policy.retries + 1):
            last = attempt == self.policy.retries
            try:
                response = await session.client.send(request, stream=True)
            except (
                httpx.ConnectError,
                httpx.ConnectTimeout,
                httpx.ReadError,
                httpx.WriteError,
                httpx.RemoteProtocolError,
            ) as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise self._broken(error, "was refused (verify= names the file of the server's authority)") from error
                if last:
                    raise self._broken(error, f"could not be made ({attempt + 1} tries; is a server running there?)") from error
                await asyncio.sleep(self._delay(attempt, None))
                continue
            except httpx.HTTPError as error:
                raise self._broken(error, "failed") from error
            if response.status_code != 503 or last:
                return response
            await response.aclose()
            await asyncio.sleep(self._delay(attempt, response.headers.get("retry-after")))
        raise AssertionError("the last attempt returns or raises")

    def _delay(self, attempt: int, retry_after: str | None) -> float:
        """Seconds to wait: doubling, with jitter so that many clients do not come back at once."""
        delay: float = min(self.policy.first_delay * 2.0**attempt, self.policy.max_delay)
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
            delay = max(delay, min(float(retry_after), self.policy.max_delay))
        return delay * random.uniform(0.5, 1.0)

    def _broken(self, error: httpx.HTTPError, what: str) -> BackendError:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return BackendTimeoutError(f"the server at {self.base_url} sent nothing for {self.policy.timeout:g} seconds")
        reason = str(error) or type(error).__name__
        return BackendConnectionError(f"the connection to {self.base_url} {what}: {reason}")


def _has_proxy(parts: SplitResult) -> bool:
    """Whether the environment, as httpx and every other client reads it, puts a proxy before this server."""
    return bool(getproxies().get("http")) and not proxy_bypass(parts.hostname or "")


def _refusal(status: int, body: bytes) -> BackendError:
    """The error of an answer that is not 200, with the server's own words."""
    message = server_message(body) or "no reason given"
    kind = RequestRefusedError if 400 <= status < 500 else ServerError
    return kind(f"the server answered {status}: {message}", status_code=status, server_message=message)


def server_message(body: bytes) -> str:
    """The sentence in an error body: any of the shapes in use, or the text itself."""
    text = body.decode(errors="replace").strip()
    try:
        data = json.loads(text)
    except ValueError:
        return text[:500]
    if isinstance(data, dict):
        error = data.get("error", data)
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or error)
        return str(error)
    return text[:500]
