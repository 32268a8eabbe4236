"""Viewers of the machine, whose streams have no end: they load no model, keep none in memory, and hold up no end of the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from sglang.cluster.relay import Lost, Relay, headers_back, headers_for, target_of
from sglang.cluster.replica_views import ReplicaViews
from sglang.cluster.servers import Servers
from sglang.cluster.upstream import Head, Upstream
from sglang.common.interrupts import wait_for
from sglang.srt.errors import OverloadError
from sglang.srt.server.limits.json_limits import Pieces

LIVE, REQUEST = "/page/live", "/page/request"
PATHS = frozenset({LIVE, REQUEST})
END_SECONDS = 1.0
"""for the end of a stream to be sent to a viewer that may not be reading"""


class Viewers:
    """Owner of the streams that are under way."""

    def __init__(self, pool: Servers) -> None:
        self._pool = pool
        self._open: set[asyncio.Future[Any]] = set()

    async def show(self, name: str, scope: Scope, receive: Receive, send: Send, body: Pieces) -> None:
        """Until the viewer leaves, or the model does. Raises OverloadError while the model is not in memory."""
        has_begun = False

        async def begin(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        relaying = asyncio.ensure_future(self._shown(name, scope, receive, begin, body))
        self._open.add(relaying)
        try:
            await relaying
        except asyncio.CancelledError:
            if not relaying.cancelled():  # it is this call that is to end
                relaying.cancel()
                raise
            if not has_begun:
                raise OverloadError("the server is shutting down") from None
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await wait_for(send({"type": "http.response.body", "body": b"", "more_body": False}), END_SECONDS)
        finally:
            self._open.discard(relaying)

    def _shown(self, name: str, scope: Scope, receive: Receive, send: Send, body: Pieces) -> Coroutine[Any, Any, Any]:
        """Raises OverloadError while the model is not in memory."""
        path = REQUEST if scope["path"].endswith(REQUEST) else LIVE
        if self._pool.wants_key:
            views = ReplicaViews(
                self._pool.replicas,
                lambda replica: self._pool.lease(name, is_use=False, replica=replica),
                target_of(scope, path),
                headers_for(scope),
                b"".join(body),
            )
            return _joined(views, receive, send) if path == LIVE else _told(views, send)
        run = self._pool.entries[name].run
        if run is None or not run.is_ready:
            raise OverloadError(f"the model {name!r} is not in memory; it is loaded by the first request for it")
        return self._relayed(Relay(scope, receive, send, target_of(scope, path), body), run.child.upstream)

    @staticmethod
    async def _relayed(relay: Relay, upstream: Upstream) -> int:
        async with relay:
            try:
                return await relay.over(upstream)
            except Lost:
                await relay.fail(OverloadError("the model is leaving the memory"))
                return 502

    def end(self) -> None:
        """Ends all streams: the server is about to."""
        for relaying in self._open:
            relaying.cancel()


async def _whole(answer: tuple[Head, bytes], send: Send) -> None:
    head, body = answer
    await send({"type": "http.response.start", "status": head.status, "headers": headers_back(head)})
    await send({"type": "http.response.body", "body": body})


async def _told(views: ReplicaViews, send: Send) -> None:
    """The answer of the replica that had the request."""
    await _whole(await views.answer(), send)


async def _joined(views: ReplicaViews, receive: Receive, send: Send) -> None:
    """The streams of all replicas as one, until the viewer leaves."""
    refusal = await views.refusal()
    if refusal is not None:
        await _whole(refusal, send)
        return
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def tell() -> None:
        with contextlib.suppress(OSError):  # the viewer hung up in the middle of a write
            async with contextlib.aclosing(views.events()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work) for work in (tell(), leave())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
