"""The HTTP application in front of the servers of several models.

    /v1/models, /health, /metrics, /models        answered here, from what is known of all models
    /models/NAME/...                              the server of a model, whatever the path: what a client of one server is given as its URL
    a body with a model                           that model's server; none, or "default": the first one
    files and batches                             answered here (--batch-dir)
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
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sglang.cluster.adapters import LOADING, ServedAdapters, loads
from sglang.cluster.held_state import OPEN_SESSION, HeldState
from sglang.cluster.metrics import GatewayMetrics, joined_metrics, labelled_metrics
from sglang.cluster.relay import JournalRoom, KeptBodies, Lost, Relay, headers_for, target_of
from sglang.cluster.route_key import RouteKey, route_key
from sglang.cluster.servers import Server, Servers
from sglang.cluster.upstream import Headers, UpstreamLost
from sglang.cluster.viewers import PATHS as OF_VIEWERS
from sglang.cluster.viewers import Viewers
from sglang.common.interrupts import wait_for
from sglang.srt.errors import DeadlineError, EngineDeadError, NoSuchModelError, OverloadError, SglangError
from sglang.srt.process.heap import release_freed_memory
from sglang.srt.server.http.app import batch_app
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
from sglang.srt.server.openai.batches.batch_runner import BatchRunner
from sglang.srt.server.page.files import PREFIX as OF_PAGE
from sglang.srt.server.page.files import PageFiles
from sglang.srt.server.page.routes import DOCS_FILES, DOCS_POLICY

ANY_MODEL = "default"
MAX_TRIES = 3
"""servers that may die over a request while its answer does not grow"""
LOST_MESSAGE = "the server of this model died in the middle of the answer; send the request again"
PREFIX = "/models/"
FLUSH = "/flush_cache"
CHANGING_BY_GET = frozenset({FLUSH, "/start_profile", "/stop_profile", "/open_session", "/close_session"})
"""of a server of one model: what no page may let a browser ask for"""
OF_ALL = re.compile(
    r"/(v1/responses/(?!compact$|input_tokens$)[^/]+(/input_items)?|abort_request|flush_cache|(start|stop)_profile"
    r"|(pause|continue)_generation)"
)
OF_BATCHES = re.compile(r"/v1/(files|batches)(/|$)")
OF_DOCS = (DOCS_FILES, f"{OF_PAGE}docs.")
LOOK_SECONDS = 5.0


class Effects:
    """Paths that change something although they may be asked by GET, below whichever prefix."""

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and any(path == one or path.endswith(one) for one in CHANGING_BY_GET)


class Gateway:
    """The application."""

    def __init__(
        self,
        pool: Servers,
        metrics: GatewayMetrics,
        page: bool,
        batches: BatchRunner | None = None,
        operator: Callable[[], Headers] = list,
    ) -> None:
        """`page`: whether there is a web page at /. `batches`: where their endpoints are answered. `operator`: headers with which the servers
        know the gateway as their operator."""
        self._pool = pool
        self._longest_name = max(map(len, pool.entries))
        self._batches = batch_app(batches)
        self._metrics = metrics
        self._viewers = Viewers(pool)
        self._adapters = ServedAdapters({name: entry.model.flags for name, entry in pool.entries.items()}, operator)
        self._bodies, self._journals = KeptBodies(), JournalRoom()
        self._state = HeldState(pool.leases)
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
        self._viewers.end()

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
        if OF_BATCHES.match(path):
            await self._batches(scope, receive, send)
            return None
        own = await self._own(scope, path) if is_get else None
        if own is not None:
            return own
        body = await read_body(Request(scope, receive))
        if path.startswith(PREFIX):
            name, rest = self._split(path.removeprefix(PREFIX))
            if LOADING.fullmatch(rest):
                return await self._change_adapters(name, rest, scope, body)
            await self._hand_on(name, rest, scope, receive, send, body)
        elif LOADING.fullmatch(path):
            return await self._change_adapters(self._pool.default, path, scope, body)
        elif OF_ALL.fullmatch(path):
            return await self._ask_all(scope, body)
        elif path == OPEN_SESSION and self._pool.wants_key:
            return await self._open_session(scope, body)
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
            return JsonResponse({"models": self._states(current_scope().is_operator)})
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
        """A model by its name, or by that of an adapter of it, ADAPTER or NAME:ADAPTER. Raises NoSuchModelError where several have such an
        adapter."""
        names, name = self._pool.entries, asked[: self._longest_name + 1]
        while name not in names and ":" in name:
            name = name.rpartition(":")[0]
        return name if name in names else self._adapters.model_of(asked)

    def _unknown(self, asked: str) -> str:
        names = list(self._pool.entries)
        hint = self._adapters.hint(asked, names) or f"; /v1/models lists all {len(names)}"
        return f"the model {asked[:200]!r} does not exist here{hint}"

    def _split(self, rest: str) -> tuple[str, str]:
        """(the name of a model, the path behind it). Raises NoSuchModelError."""
        name = rest[: self._longest_name + 1]  # a longer path has no longer names to try
        while name not in self._pool.entries:
            name, slash, _ = name.rpartition("/")
            if not slash:
                raise NoSuchModelError(self._unknown(rest.partition("/")[0]))
        return name, rest[len(name) :] or "/"

    async def _hand_on(self, name: str, path: str | None, scope: Scope, receive: Receive, send: Send, body: Pieces) -> None:
        """`path`: instead of the one that came. Raises OverloadError, EngineDeadError or DeadlineError."""
        if (path or scope["path"]) in OF_VIEWERS:
            await self._viewers.show(name, scope, receive, send, body)
            return
        target = target_of(scope, path)
        if path is not None:
            scope = {**scope, "path": path}
        with self._metrics.request(name), self._bodies.keep(body) as is_kept:
            holder = None
            if self._pool.wants_key and any(body) and _is_json(scope):
                holder = await self._state.holder(scope["path"], headers_for(scope)[1:], body)
            async with Relay(scope, receive, send, target, body, self._journals) as relay:
                try:
                    await self._answer(name, relay, scope, is_kept, holder)
                except SglangError as error:
                    await relay.fail(error)
                finally:
                    self._metrics.resumed(name, relay.num_resumed)

    async def _open_session(self, scope: Scope, body: Pieces) -> Response:
        """In one of several replicas, which then has it."""
        async with self._pool.lease(self._pool.default) as child:
            answer = await _asked(scope, child, body)
        if answer.status_code == 200:
            self._state.opened(bytes(answer.body), child.replica)
        return answer

    async def _change_adapters(self, name: str, path: str, scope: Scope, body: Pieces) -> Response:
        """Has every server of a model load or unload an adapter. What one cannot load, none has then. Raises EngineDeadError."""
        adapter = await peek(body, "lora_name")

        async def ask(lease: AbstractAsyncContextManager[Server]) -> tuple[Server, Response]:
            async with lease as server:
                await self._adapters.tell(name, server)
                try:
                    return server, await _asked(scope, server, body, path)
                except UpstreamLost as error:
                    raise EngineDeadError(f"the server of {name!r} died while it was asked about the adapter") from error

        leases = self._pool.leases() if self._pool.wants_key else [self._pool.lease(name)]
        if not leases:
            raise OverloadError(f"no server of {name!r} runs now: try again later")
        answers = await asyncio.gather(*map(ask, leases))
        done = [server for server, answer in answers if answer.status_code == 200]
        refused = [answer for _, answer in answers if answer.status_code != 200]
        if refused and (loads(path) or not done):
            undo = Pieces((json.dumps({"lora_name": adapter}).encode(),))
            await asyncio.gather(*(_asked(scope, server, undo, "/unload_lora_adapter") for server in done))
            return refused[0]
        for server in done:
            self._adapters.heard(name, server, path, adapter, b"".join(body))
        return answers[0][1]

    async def _answer(self, name: str, relay: Relay, scope: Scope, is_kept: bool, holder: str | None) -> None:
        """Has a request answered, by one server after the other if they are lost: as long as the answer grows, else by MAX_TRIES."""

        def on_sent() -> None:
            release_body(scope)
            if not is_kept:
                relay.forget_body()

        key = route_key(relay.body) if self._pool.wants_key and relay.can_repeat else None
        tries, losers, child = 0, set[str](), None
        while tries < MAX_TRIES:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    child = await self._leased(stack, name, relay, key, holder, losers)
                    if child is None:
                        return
                    relay.fingerprint = child.fingerprint
                    await self._adapters.tell(name, child)
                    await relay.over(child.upstream, on_sent, child.heard)
                    return
            except Lost as lost:
                if not lost.may_go_on:
                    raise EngineDeadError(LOST_MESSAGE) from lost
                tries = 1 if lost.is_new else tries + 1
                losers |= {child.replica} if child is not None else set()
            self._metrics.retried(name)
            await asyncio.sleep(0.1)  # until its end has been noticed
        raise EngineDeadError(f"the server of {name!r} died several times over this request; it is not tried again")

    async def _leased(
        self,
        stack: contextlib.AsyncExitStack,
        name: str,
        relay: Relay,
        key: RouteKey | None,
        holder: str | None,
        losers: Collection[str],
    ) -> Server | None:
        """The server of a model, held by `stack`; None if the client leaves while it is loaded. Raises DeadlineError."""
        begun_by = relay.fingerprint if relay.has_begun else ""
        lease = self._pool.lease(name, key, begun_by, replica=holder, lost=losers)
        if key is None and name in (entry.model.name for entry in self._pool.loaded()):
            return await stack.enter_async_context(lease)
        entering = asyncio.ensure_future(stack.enter_async_context(lease))
        limit = current_scope().timeout
        try:
            await asyncio.wait({entering, relay.gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if entering.done():
                return entering.result()
            if relay.has_left:
                return None
            raise DeadlineError(f"the request was not finished after {limit:g} s: it waited for a server")
        finally:
            if not entering.done():
                entering.cancel()
                await asyncio.gather(entering, return_exceptions=True)

    # --- all models ---------------------------------------------------------------------------------------------------------

    def _health(self) -> Response:
        """Requests for any model are taken; those for one that is not in memory wait until it is loaded."""
        states = {state["state"] for state in self._states()}
        is_up = not self.is_draining and bool(states - {"failed", "starting"})
        status = "draining" if self.is_draining else "ready" if is_up else "starting" if "starting" in states else "broken"
        return JsonResponse({"status": status}, 200 if is_up else 503)

    async def _all_generate(self) -> Response:
        """Whether all models in memory generate. None is loaded for that: no key is needed to ask."""

        async def ask(lease: AbstractAsyncContextManager[Server]) -> bool:
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost):
                async with lease as child:
                    head, _ = await child.upstream.ask("GET", "/health_generate")
                return head.status == 200
            return False

        healthy = await asyncio.gather(*map(ask, self._pool.leases(is_use=False)))
        return Response(status_code=200 if all(healthy) else 503)

    def _states(self, for_operator: bool = True) -> list[dict[str, Any]]:
        """Processes and what runs in them are the operator's to know."""
        now = time.monotonic()
        found = []
        for entry in self._pool.entries.values():
            state: dict[str, Any] = {"name": entry.model.name, "state": entry.state}
            if entry.run is not None and for_operator:
                state |= {
                    "requests": entry.run.num_leases,
                    "memory_bytes": entry.run.child.memory(),
                    "pid": entry.run.child.pid,
                }
                state |= {"idle_seconds": round(now - entry.run.last_used, 1) if not entry.run.num_leases else 0.0}
            elif entry.run is None and entry.error:
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
                async with self._pool.lease(name, is_use=False) as child:
                    await self._adapters.tell(name, child)
                    head, body = await child.upstream.ask("GET", "/v1/models", headers_for(scope)[1:])
                cards: list[dict[str, Any]] = json.loads(body)["data"]
                return [{**card, "id": self._id_here(card, name), "loaded": True} for card in cards]
        more: dict[str, Any] = {}
        if _is_for_anthropic(scope):
            begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._created))
            more = {"type": "model", "display_name": name, "created_at": begun}
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "sglang", "root": name, "loaded": False}
        return [{**card, **more}]

    def _id_here(self, card: dict[str, Any], name: str) -> str:
        """Names of adapters are their models' own: beside other models they are NAME:ADAPTER."""
        return card["id"] if self._pool.wants_key or card["id"] == name else f"{name}:{card['id']}"

    async def _model(self, scope: Scope, name: str) -> Response:
        asked = self._pool.default if name == ANY_MODEL else name
        known = self._known(asked)
        cards = await self._cards(scope, known) if known is not None else []
        for card in cards:
            if card["id"] in (asked, f"{known}:{asked}"):
                return JsonResponse(card)
        message = self._unknown(name)
        if _is_for_anthropic(scope):
            return JsonResponse(anthropic_error_body(404, message), 404, request_id())
        raise NoSuchModelError(message)

    async def _ask_all(self, scope: Scope, body: Pieces) -> Response:
        """The answer of the first server in memory that does not say 404; that of the last one if all do."""
        response: Response | None = None
        if scope["path"] == FLUSH:
            await asyncio.to_thread(release_freed_memory)  # bodies leave holes in the heap, here as in the servers
        for lease in self._pool.leases():
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost):
                async with lease as child:
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

        async def ask(lease: AbstractAsyncContextManager[Server]) -> None:
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost, asyncio.TimeoutError):
                async with lease as child:
                    head, text = await wait_for(child.upstream.ask("GET", "/metrics"), LOOK_SECONDS)
                if head.status == 200:
                    replica = child.replica
                    texts.append(labelled_metrics(text.decode(), replica) if replica else text.decode())

        await asyncio.gather(*map(ask, self._pool.leases(is_use=False)))
        return PlainTextResponse(joined_metrics(texts), media_type="text/plain; version=0.0.4")


async def _asked(scope: Scope, child: Server, body: Pieces, path: str | None = None) -> Response:
    """A short answer, whole."""
    exchange = child.upstream.exchange()
    try:
        head = await exchange.send(scope["method"], target_of(scope, path), headers_for(scope), body)
        pieces = []
        while piece := await exchange.read():
            pieces.append(piece)
    finally:
        exchange.close()
    kind = next((value.decode("latin-1") for name, value in head.headers if name == b"content-type"), None)
    return Response(b"".join(pieces), head.status, media_type=kind)


def _is_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return not kinds or b"json" in kinds[0].lower() or b"urlencoded" in kinds[0].lower()


def _is_for_anthropic(scope: Scope) -> bool:
    return any(name == b"anthropic-version" for name, _ in scope["headers"]) or speaks_anthropic(scope["path"])
