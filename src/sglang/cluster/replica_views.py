"""The machine views of several replicas as one stream: each gets a number, and tells of itself as long as it is there.

    replica --POST /page/live--> its events --"replica": number--> one queue --> viewer

A replica that comes gets the least number that is free. When one goes, an event says that its tree is empty. A viewer that does not keep up
stops the reading from the replicas, which then drop what they would have told and tell their state anew (server/page/live.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from sglang.cluster.servers import Server
from sglang.cluster.upstream import Exchange, Head, Headers, UpstreamLost
from sglang.common.interrupts import wait_for
from sglang.common.sse import EventSplitter
from sglang.srt.errors import OverloadError, SglangError
from sglang.srt.messages import SchedulerStats

LOOK_SECONDS = 1.0
"""after which it is looked which replicas there are"""
OPEN_SECONDS = 5.0
DATA = b"data: "

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


LeaseOf = Callable[[str], AbstractAsyncContextManager[Server]]


class ReplicaViews:
    """What one viewer sees. `names`: of the replicas that are there now. `lease`: of one of them."""

    def __init__(
        self, names: Callable[[], Sequence[str]], lease: LeaseOf, target: bytes, headers: Headers, body: bytes
    ) -> None:
        self._names, self._lease = names, lease
        self._target, self._headers, self._body = target, headers, body
        self._events: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._open: dict[str, tuple[int, asyncio.Task[None]]] = {}

    async def answer(self) -> tuple[Head, bytes]:
        """The answer of the replica that has what is asked for; else of one that has not. Raises OverloadError."""
        found = None
        for name in self._names():
            with contextlib.suppress(SglangError, UpstreamLost, asyncio.TimeoutError):
                exchange, head = await wait_for(self._ask(name), OPEN_SECONDS)
                try:
                    found = head, await _rest(exchange)
                finally:
                    exchange.close()
                if head.status != 404:
                    break
        if found is None:
            raise OverloadError("no replica answers now")
        return found

    async def refusal(self) -> tuple[Head, bytes] | None:
        """The answer of a replica that does not show itself; None if one does. Raises OverloadError."""
        for name in self._names():
            with contextlib.suppress(SglangError, UpstreamLost, asyncio.TimeoutError):
                exchange, head = await wait_for(self._ask(name), OPEN_SECONDS)
                try:
                    return None if head.status == 200 else (head, await _rest(exchange))
                finally:
                    exchange.close()
        raise OverloadError("no replica answers now")

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Without an end."""
        try:
            while True:
                self._follow_all(self._names())
                with contextlib.suppress(asyncio.TimeoutError):
                    yield await wait_for(self._events.get(), LOOK_SECONDS)
        finally:
            for _, task in self._open.values():
                task.cancel()

    def _follow_all(self, names: Collection[str]) -> None:
        self._open = {name: (number, task) for name, (number, task) in self._open.items() if not task.done()}
        for name in sorted(set(names) - set(self._open)):
            taken = {number for number, _ in self._open.values()}
            number = next(i for i in range(len(taken) + 1) if i not in taken)
            self._open[name] = number, asyncio.create_task(self._follow(name, number))

    async def _follow(self, name: str, number: int) -> None:
        """Until the replica's stream ends."""
        has_told = False
        with contextlib.suppress(SglangError, UpstreamLost, asyncio.TimeoutError):
            exchange, head = await wait_for(self._ask(name), OPEN_SECONDS)
            blocks = EventSplitter()
            try:
                while head.status == 200 and (piece := await exchange.read()):
                    if found := blocks.feed(piece):
                        has_told = True
                        await self._events.put(b"".join(_numbered(block, number) for block in found))
            finally:
                exchange.close()
        if has_told:
            await self._events.put(_gone(number))
        else:
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(self, name: str) -> tuple[Exchange, Head]:
        """The lease ends at once: a viewer is no work that scales replicas, and holds up none that is to go."""
        async with self._lease(name) as server:
            exchange = server.upstream.exchange()
        try:
            return exchange, await exchange.send("POST", self._target, self._headers, [self._body])
        except BaseException:
            exchange.close()
            raise


async def _rest(exchange: Exchange) -> bytes:
    pieces = []
    while piece := await exchange.read():
        pieces.append(piece)
    return b"".join(pieces)


def _numbered(block: bytes, number: int) -> bytes:
    """An event, with the number of its replica. Calls of programs have none."""
    if not block.startswith(DATA):
        return block + b"\n\n"
    fields = _fields(block[len(DATA) :])
    if "replica" in fields:
        fields["replica"] = msgspec.Raw(b"%d" % number)
    return DATA + _encode(fields) + b"\n\n"


def _gone(number: int) -> bytes:
    """What is told of a replica that is gone, as of a scheduler that has died (process/routing.py)."""
    nothing = {"first": True, "nodes": [], "gone": [], "steps": [], "replica": number, "late": 0, "omitted": 0}
    return DATA + _encode({**nothing, "stats": msgspec.structs.asdict(SchedulerStats())}) + b"\n\n"
