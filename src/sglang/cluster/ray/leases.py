"""The replicas of one model as the gateway sees them: a lease for each request, and what holds for all of them.

    request --router.begin--> replica --a lease of it that is free--> its server          no call of Ray
                                      --none: Serve's handle--------> a lease, its server  one call
    end of the request -> the lease is free for KEEP_SECONDS, for the next request that the router sends to that replica -> given back

So what Serve counts as running is what runs, and at most MAX_FREE leases a replica, for a moment: autoscaling and draining see no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from sglang.cluster.model_list import ServedModel
from sglang.cluster.ray import live
from sglang.cluster.ray.deployment import Deployment
from sglang.cluster.route_key import RouteKey
from sglang.cluster.upstream import Address, Upstream
from sglang.common.interrupts import wait_for
from sglang.srt.errors import EngineDeadError, OverloadError, StateLostError

logger = logging.getLogger("sglang")

RETRY_SECONDS = 0.1
ONE_SECONDS = 20.0
"""for a certain replica"""
LOOK_SECONDS = 2.0
"""after which it is looked whether that one is still there"""
TURN_SECONDS = 5.0
"""after which another replica is asked for a lease"""
SLOW_SECONDS = 15.0
"""for which one that did not answer is asked last"""
KEEP_SECONDS = 0.1
MAX_FREE = 4
GONE = (
    "the replica that had the session, or the stored response, of this request is gone: open another session, or send the whole "
    "conversation"
)
OTHER_BITS = "the replica that began this answer is gone, and the others have other weights or kernels"
MAX_UPSTREAMS = 1024
"""replicas that are remembered, those that are gone among them"""


def known_replicas() -> set[str]:
    """Those that Serve believes to be alive."""
    return {replica.unique_id for router in live.ROUTERS for replica in router.curr_replicas}


def _router() -> Any:
    """The one of this process, None until Serve has made it; where it has made another one, that which knows more."""
    return max(live.ROUTERS, key=lambda router: len(router.curr_replicas), default=None)


class Server:
    """A replica's server."""

    def __init__(self, place: dict[str, Any]) -> None:
        address = Address(host=place["host"], port=place["port"])
        self.upstream = Upstream(address, [(b"x-sglang-gateway", place["token"].encode())])
        self.fingerprint = str(place["fingerprint"])
        self.pid = int(place["pid"])
        self.replica = str(place["replica"])


class Turn:
    """A server while one request has it."""

    def __init__(self, server: Server, router: Any, name: int) -> None:
        self.upstream, self.fingerprint, self.pid, self.replica = (
            server.upstream,
            server.fingerprint,
            server.pid,
            server.replica,
        )
        self._router, self._name = router, name

    def heard(self, num_outputs: int) -> None:
        """So many outputs have come of it."""
        if self._router is not None:
            self._router.progress(self._name, num_outputs)


class Lease:
    """One that Serve counts until it is given back. A replica that dies while it lasts, or that Serve ends since it does not answer, may
    have a server that is frozen or unreachable: then what is said to that one is broken off, and goes on elsewhere."""

    def __init__(self, response: Any, places: AsyncIterator[dict[str, Any]], server: Server) -> None:
        """`places`: what `response` yields, of which the first was the server's."""
        self._response = response
        self.server = server
        self.freed_at = 0.0
        self._is_over = False
        self._watching = asyncio.ensure_future(self._watch(places))

    async def _watch(self, places: AsyncIterator[dict[str, Any]]) -> None:
        try:
            async for _ in places:
                pass
        except (RayError, RayServeException) as error:
            if self._is_over:  # we have ended it ourselves; others have theirs
                return
            logger.debug("A lease of %s has ended: %r", self.server.replica, error)
            self.server.upstream.break_off()

    def give_back(self) -> None:
        self._is_over = True
        self._watching.cancel()
        self._response.cancel()


class FreeLeases:
    """Owner of leases that no request has, by replica, the oldest first."""

    def __init__(self) -> None:
        self._free: dict[str, deque[Lease]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def take(self, replica: str | None) -> Lease | None:
        found = self._free.get(replica or "")
        return found.pop() if found else None

    def keep(self, lease: Lease) -> None:
        free = self._free.setdefault(lease.server.replica, deque())
        if len(free) == MAX_FREE:
            free.popleft().give_back()
        lease.freed_at = time.monotonic()
        free.append(lease)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(KEEP_SECONDS, self._sweep)

    def drop(self, replica: str) -> None:
        """Those of a replica that may be gone."""
        for lease in self._free.pop(replica, ()):
            lease.give_back()

    def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for replica in list(self._free):
            self.drop(replica)

    def _sweep(self) -> None:
        now, self._sweeping = time.monotonic(), None
        for replica, free in list(self._free.items()):
            while free and now - free[0].freed_at >= KEEP_SECONDS:
                free.popleft().give_back()
            if not free:
                del self._free[replica]
        if self._free:
            self._sweeping = asyncio.get_running_loop().call_later(KEEP_SECONDS / 2, self._sweep)


class RayEntry:
    """The model, as the gateway lists it."""

    run = None
    error = ""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.state = "starting"  # and no request waits for that


class RayPool:
    """Owner of the deployment and of the connections to its replicas. `replica_wait`: seconds that a request waits for one. `secrets`:
    files of keys that the flags name, read here and written again where the replicas are."""

    wants_key = True

    def __init__(self, deployment: Deployment, model: ServedModel, more: dict[str, Any], replica_wait: float) -> None:
        self.entries = {model.name: RayEntry(model)}
        self._deployment = deployment
        self._wait = replica_wait
        self._more = more
        self._handle: Any = None
        self._servers: dict[tuple[str, int], Server] = {}
        self._free = FreeLeases()
        self._names = itertools.count()
        self._slow: dict[str, float] = {}
        """replicas that did not answer, and until when they are asked last"""

    @property
    def default(self) -> str:
        return next(iter(self.entries))

    def loaded(self) -> list[RayEntry]:
        return [entry for entry in self.entries.values() if entry.state == "ready"]

    async def preload(self) -> None:
        """Connects and deploys. Raises ConfigError."""
        entry = self.entries[self.default]
        await self._deployment.connect()
        flags, secrets = dict(entry.model.flags), {}
        for name, value in self._more.items():
            if name.endswith("_file"):
                secrets[name] = Path(value).read_text().splitlines()
            else:
                flags[name] = value
        self._handle = await self._deployment.deploy((entry.model.name, flags, secrets, self._deployment.is_local))
        self._handle = self._handle.options(stream=True)
        async with self.lease(self.default):  # from here on the router knows the replicas
            entry.state = "ready"

    def replicas(self) -> list[str]:
        """Those that Serve believes to be alive."""
        return sorted(known_replicas()) if self._handle is not None else []

    def leases(self, is_use: bool = True) -> list[Any]:
        """One of each replica."""
        return [self.lease(self.default, replica=one) for one in self.replicas()]

    @contextlib.asynccontextmanager
    async def lease(
        self,
        name: str,
        key: RouteKey | None = None,
        fingerprint: str = "",
        is_use: bool = True,
        replica: str | None = None,
        lost: Collection[str] = (),
    ) -> AsyncIterator[Turn]:
        """A replica for one request. `fingerprint`: that it must have, if another one began the answer. `replica`: this one. `lost`: those
        to take last. Raises OverloadError if there is none for too long, EngineDeadError if those that are there compute other bits."""
        if self._handle is None:
            raise OverloadError("the replicas are being started")
        asked: dict[str, Any] = (key or RouteKey()).as_dict() | {"name": next(self._names), "lost": [*lost, *self._slow_ones()]}
        if replica is not None:
            asked |= {"only": replica}
        router = _router()
        try:
            lease = self._free_one(router, asked, fingerprint)
            if lease is None:
                lease = await self._place(router, asked, fingerprint)
            try:
                yield Turn(lease.server, router, asked["name"])
            except BaseException:
                self._free.drop(lease.server.replica)  # it may be gone
                lease.give_back()
                raise
            self._free.keep(lease)
        finally:
            if router is not None:
                router.end(asked["name"])

    def _free_one(self, router: Any, asked: dict[str, Any], fingerprint: str) -> Lease | None:
        """A lease that needs no call, of the replica where the request costs least."""
        chosen = router.begin(asked["name"], asked) if router is not None else None
        lease = self._free.take(chosen)
        if lease is None:
            return None
        if fingerprint not in ("", lease.server.fingerprint):
            self._free.keep(lease)
            return None
        router.goes_to(asked["name"], chosen, asked)
        return lease

    def _slow_ones(self) -> list[str]:
        now = time.monotonic()
        self._slow = {replica: until for replica, until in self._slow.items() if until > now}
        return list(self._slow)

    def _note_slow(self, router: Any, asked: dict[str, Any], replica: str = "") -> list[str]:
        """The replica that was asked first and did not answer: another one did, or none. It is asked last for a while."""
        first = router.first_choice(asked["name"]) if router is not None else ""
        if first in ("", replica):
            return []
        self._slow[first] = time.monotonic() + SLOW_SECONDS
        return [first]

    async def _place(self, router: Any, asked: dict[str, Any], fingerprint: str) -> Lease:
        """A new lease, by Serve."""
        only, others = asked.get("only"), set[str]()
        seconds, turn = (self._wait, TURN_SECONDS) if only is None else (ONE_SECONDS, LOOK_SECONDS)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if only is not None and only not in known_replicas():
                raise StateLostError(GONE)
            response = self._handle.lease.remote(asked)
            try:
                places = aiter(response)
                server = self._server(await wait_for(anext(places), min(left, turn)))
                self._note_slow(router, asked, server.replica)
                lease = Lease(response, places, server)
                if fingerprint in ("", lease.server.fingerprint):
                    return lease
                lease.give_back()
                others.add(lease.server.replica)
                if others.issuperset(known_replicas()):
                    raise EngineDeadError(OTHER_BITS)
                asked = asked | {"lost": [*asked["lost"], lease.server.replica]}
            except (RayError, RayServeException) as error:
                logger.debug("A lease failed: %r", error)  # the replica has died; Serve learns of it
                await asyncio.sleep(RETRY_SECONDS)
            except asyncio.TimeoutError:
                response.cancel()
                asked = asked | {"lost": [*asked["lost"], *self._note_slow(router, asked)]}
            except BaseException:
                response.cancel()
                raise
        if only is not None:
            raise OverloadError(f"the replica that this request needs did not answer within {seconds:g} s")
        raise OverloadError(f"no replica is alive, and none came within {seconds:g} s (--replica-wait)")

    def _server(self, place: dict[str, Any]) -> Server:
        where = place["host"], place["port"]
        found = self._servers.get(where)
        if found is None or found.pid != place["pid"]:
            while len(self._servers) >= MAX_UPSTREAMS:
                self._servers.pop(next(iter(self._servers))).upstream.close()
            found = self._servers[where] = Server(place)
        return found

    def reload(self) -> None:
        """Keys are read again by the gateway alone."""
        logger.warning("The replicas keep the keys that they were started with: deploy them again to change keys.")

    async def close(self) -> None:
        self._free.close()
        for server in self._servers.values():
            server.upstream.close()
        await self._deployment.close()
