"""The HTTP application in front of the servers of several models.

    /v1/models, /health, /metrics, /models        answered here, from what is known of all models
    /models/NAME/...                              the server of a model, whatever the path: what a client of one server is given as its URL
    a body with a model                           that model's server; none, or "default": the first one
    a stored response, an abort, an operator's    those in memory, since any of them may be meant
    all else                                      the first model's server

Host, Origin, keys and sizes were checked before (serving.py). A request whose server dies before it answers waits for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sglang.cluster.child import Child
from sglang.cluster.metrics import GatewayMetrics, joined_metrics
from sglang.cluster.pool import ModelPool
from sglang.cluster.relay import NotBegun, headers_for, relay, target_of
from sglang.cluster.upstream import UpstreamLost
from sglang.common.suggest import did_you_mean
from sglang.srt.errors import DeadlineError, EngineDeadError, NoSuchModelError, OverloadError, SglangError
from sglang.srt.server.http.bodies import peek, read_body
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.http.wire import (
    CLIENT_GONE,
    JsonResponse,
    anthropic_error_body,
    error_response,
    request_id,
    speaks_anthropic,
)
from sglang.srt.server.limits.body_room import release_body
from sglang.srt.server.limits.json_limits import Pieces
from sglang.srt.server.page.files import PREFIX as OF_PAGE
from sglang.srt.server.page.files import PageFiles
from sglang.srt.server.page.routes import DOCS_FILES, DOCS_POLICY

ANY_MODEL = "default"
MAX_TRIES = 3
"""servers that may die before a request is answered"""
PREFIX = "/models/"
CHANGING_BY_GET = frozenset({"/flush_cache", "/start_profile", "/stop_profile", "/open_session", "/close_session"})
"""of a server of one model: what no page may let a browser ask for"""
OF_ALL = re.compile(
    r"/(v1/responses/(?!compact$|input_tokens$)[^/]+(/input_items)?|abort_request|flush_cache|(start|stop)_profile"
    r"|(pause|continue)_generation)"
)
OF_DOCS = (DOCS_FILES, f"{OF_PAGE}docs.")
LOOK_SECONDS = 5.0


class Effects:
    """Paths that change something although they may be asked by GET, below whichever prefix."""

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and any(path == one or path.endswith(one) for one in CHANGING_BY_GET)


class Gateway:
    """The application."""

    def __init__(self, pool: ModelPool, metrics: GatewayMetrics, page: bool) -> None:
        """`page`: whether there is a web page at /."""
        self._pool = pool
        self._metrics = metrics
        self._files = PageFiles()
        self._pages = {path for path in self._files.paths if page or path.startswith(OF_DOCS)}
        self._created = int(time.time())
        self._draining_since = float("inf")

    @property
    def open_paths(self) -> frozenset[str]:
        """What is served without a key: files that are the same for everyone."""
        return frozenset({*self._pages, "/docs"})

    def begin_drain(self) -> None:
        """From now on, new requests are refused; those that have arrived go on."""
        self._draining_since = time.monotonic()

    @property
    def is_draining(self) -> bool:
        return self._draining_since != float("inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._serve(scope, receive, send)
        except SglangError as error:
            response = error_response(error, scope["path"])
        except ClientDisconnect:
            response = CLIENT_GONE
        if response is not None:
            await response(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """A response of our own; None if the request was handed on."""
        path, is_get = scope["path"], scope["method"] in ("GET", "HEAD")
        if is_get and path == "/health":
            return self._health()
        if current_scope().arrived_at > self._draining_since:
            raise OverloadError("the server is shutting down")
        own = await self._own(scope, path) if is_get else None
        if own is not None:
            return own
        body = await read_body(Request(scope, receive))
        if path.startswith(PREFIX):
            name, rest = self._split(path.removeprefix(PREFIX))
            await self._hand_on(name, rest, scope, receive, send, body)
        elif OF_ALL.fullmatch(path):
            return await self._ask_all(scope, body)
        else:
            asked = await peek(body, "model") if any(body) and _is_json(scope) else None
            await self._hand_on(self._named(asked), None, scope, receive, send, body)
        return None

    async def _own(self, scope: Scope, path: str) -> Response | None:
        """What is answered here."""
        if path == "/metrics":
            return await self._all_metrics()
        if path == "/health_generate":
            return await self._all_generate()
        if path == "/models":
            return JsonResponse({"models": self._states()})
        if path == "/v1/models":
            return await self._models(scope)
        if path.startswith("/v1/models/"):
            return await self._model(scope, path.removeprefix("/v1/models/"))
        if path in self._pages:
            return self._files.named(path).response(Request(scope))
        if path == "/docs":
            return self._files.named(f"{OF_PAGE}docs.html").response(Request(scope), DOCS_POLICY)
        return None

    # --- one model ----------------------------------------------------------------------------------------------------------

    def _named(self, asked: Any) -> str:
        """The model that a body means. What is no text is for its server to refuse. Raises NoSuchModelError."""
        if not isinstance(asked, str) or asked in ("", ANY_MODEL):
            return self._pool.default
        found = self._known(asked)
        if found is None:
            raise NoSuchModelError(self._unknown(asked))
        return found

    def _known(self, asked: str) -> str | None:
        """A model by its name, or by that of an adapter of it, NAME:ADAPTER."""
        names = self._pool.entries
        while asked not in names and ":" in asked:
            asked = asked.rpartition(":")[0]
        return asked if asked in names else None

    def _unknown(self, asked: str) -> str:
        names = list(self._pool.entries)
        hint = did_you_mean(asked, names) or f"; /v1/models lists all {len(names)}"
        return f"the model {asked[:200]!r} does not exist here{hint}"

    def _split(self, rest: str) -> tuple[str, str]:
        """(the name of a model, the path behind it). Raises NoSuchModelError."""
        parts = rest.split("/")
        for count in range(len(parts), 0, -1):
            name = "/".join(parts[:count])
            if name in self._pool.entries:
                return name, "/" + "/".join(parts[count:])
        raise NoSuchModelError(self._unknown(parts[0]))

    async def _hand_on(self, name: str, path: str | None, scope: Scope, receive: Receive, send: Send, body: Pieces) -> None:
        """`path`: instead of the one that came. Raises OverloadError, EngineDeadError or DeadlineError."""
        target = target_of(scope, path)
        if path is not None:
            scope = {**scope, "path": path}
        with self._metrics.request(name):
            for _ in range(MAX_TRIES):
                async with contextlib.AsyncExitStack() as stack:
                    child = await self._leased(stack, name, receive)
                    if child is None:
                        return
                    with contextlib.suppress(NotBegun):
                        await relay(scope, receive, send, child.upstream, target, body, lambda: release_body(scope))
                        return
                self._metrics.retried(name)
                await asyncio.sleep(0.1)  # until its end has been noticed
        raise EngineDeadError(
            f"the server of {name!r} died several times before it answered this request; it is not tried again"
        )

    async def _leased(self, stack: contextlib.AsyncExitStack, name: str, receive: Receive) -> Child | None:
        """The server of a model, held by `stack`; None if the client leaves while it is loaded. Raises DeadlineError."""
        lease = self._pool.lease(name)
        if name in (entry.model.name for entry in self._pool.loaded()):
            return await stack.enter_async_context(lease)
        entering = asyncio.ensure_future(stack.enter_async_context(lease))
        leaving = asyncio.ensure_future(_gone(receive))
        limit = current_scope().timeout
        try:
            await asyncio.wait({entering, leaving}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if entering.done():
                return entering.result()
            if leaving.done():
                return None
            raise DeadlineError(f"the request was not finished after {limit:g} s: its model is being loaded")
        finally:
            leaving.cancel()
            if not entering.done():
                entering.cancel()
                await asyncio.gather(entering, return_exceptions=True)

    # --- all models ---------------------------------------------------------------------------------------------------------

    def _health(self) -> Response:
        """Welcome are requests for any model; those that are not in memory wait until they are."""
        states = self._states()
        is_up = not self.is_draining and any(state["state"] != "failed" for state in states)
        status = "draining" if self.is_draining else "ready" if is_up else "broken"
        return JsonResponse({"status": status}, 200 if is_up else 503)

    async def _all_generate(self) -> Response:
        """Whether all models in memory generate. None is loaded for that: no key is needed to ask."""

        async def ask(name: str) -> bool:
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost):
                async with self._pool.lease(name) as child:
                    head, _ = await child.upstream.ask("GET", "/health_generate")
                return head.status == 200
            return False

        healthy = await asyncio.gather(*(ask(entry.model.name) for entry in self._pool.loaded()))
        return Response(status_code=200 if all(healthy) else 503)

    def _states(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        found = []
        for entry in self._pool.entries.values():
            state: dict[str, Any] = {"name": entry.model.name, "state": entry.state}
            if entry.run is not None:
                state |= {
                    "requests": entry.run.num_leases,
                    "memory_bytes": entry.run.child.memory(),
                    "pid": entry.run.child.pid,
                }
                state |= {"idle_seconds": round(now - entry.run.last_used, 1) if not entry.run.num_leases else 0.0}
            elif entry.error:
                state["error"] = entry.error
            found.append(state)
        return found

    async def _models(self, scope: Scope) -> Response:
        cards = [card for name in self._pool.entries for card in await self._cards(scope, name)]
        found: dict[str, Any] = {"object": "list", "data": cards}
        if _is_for_anthropic(scope):
            found |= {"has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
        return JsonResponse(found)

    async def _cards(self, scope: Scope, name: str) -> list[dict[str, Any]]:
        """What a model's server says of itself and its adapters; what is known without it, where it is not in memory."""
        entry = self._pool.entries[name]
        if entry.state == "ready":
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost, ValueError, KeyError):
                async with self._pool.lease(name) as child:
                    head, body = await child.upstream.ask("GET", "/v1/models", headers_for(scope)[1:])
                cards: list[dict[str, Any]] = json.loads(body)["data"]
                return [{**card, "loaded": True} for card in cards]
        more: dict[str, Any] = {}
        if _is_for_anthropic(scope):
            begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._created))
            more = {"type": "model", "display_name": name, "created_at": begun}
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "sglang", "root": name, "loaded": False}
        return [{**card, **more}]

    async def _model(self, scope: Scope, name: str) -> Response:
        asked = self._pool.default if name == ANY_MODEL else name
        known = self._known(asked)
        cards = await self._cards(scope, known) if known is not None else []
        for card in cards:
            if card["id"] == asked:
                return JsonResponse(card)
        message = self._unknown(name)
        if _is_for_anthropic(scope):
            return JsonResponse(anthropic_error_body(404, message), 404, request_id())
        raise NoSuchModelError(message)

    async def _ask_all(self, scope: Scope, body: Pieces) -> Response:
        """The answer of the first server in memory that does not say 404; that of the last one if all do."""
        response: Response | None = None
        for entry in self._pool.loaded():
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost):
                async with self._pool.lease(entry.model.name) as child:
                    answer = await _asked(scope, child, body)
                if response is None or response.status_code == 404:
                    response = answer
                if response.status_code != 404 and scope["path"].startswith("/v1/"):
                    break
        if response is None:
            raise NoSuchModelError("no model is in memory that could know of this", None)
        return response

    async def _all_metrics(self) -> Response:
        texts = [self._metrics.render(self._states())]

        async def ask(name: str) -> None:
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost, asyncio.TimeoutError):
                async with self._pool.lease(name) as child:
                    head, text = await asyncio.wait_for(child.upstream.ask("GET", "/metrics"), LOOK_SECONDS)
                if head.status == 200:
                    texts.append(text.decode())

        await asyncio.gather(*(ask(entry.model.name) for entry in self._pool.loaded()))
        return PlainTextResponse(joined_metrics(texts), media_type="text/plain; version=0.0.4")


async def _asked(scope: Scope, child: Child, body: Pieces) -> Response:
    """A short answer, whole."""
    exchange = child.upstream.exchange()
    try:
        head = await exchange.send(scope["method"], target_of(scope), headers_for(scope), body)
        pieces = []
        while piece := await exchange.read():
            pieces.append(piece)
    finally:
        exchange.close()
    kind = next((value.decode("latin-1") for name, value in head.headers if name == b"content-type"), None)
    return Response(b"".join(pieces), head.status, media_type=kind)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return not kinds or b"json" in kinds[0].lower() or b"urlencoded" in kinds[0].lower()


def _is_for_anthropic(scope: Scope) -> bool:
    return any(name == b"anthropic-version" for name, _ in scope["headers"]) or speaks_anthropic(scope["path"])
