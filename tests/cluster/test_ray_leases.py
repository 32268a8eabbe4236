"""Leases of replicas, with replicas that are not there: how many calls requests take, which replica they go to, what is given back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="run by make test-cluster")

from ray.exceptions import RayActorError
from ray.serve.exceptions import RequestCancelledError

from sglang.cluster.gateway import Gateway
from sglang.cluster.metrics import GatewayMetrics
from sglang.cluster.model_list import ServedModel
from sglang.cluster.policy import block_hashes
from sglang.cluster.ray import connection, leases, live
from sglang.cluster.ray.leases import RayPool
from sglang.cluster.ray.router import PrefixRouter
from sglang.cluster.route_key import RouteKey
from sglang.cluster.upstream import Address, UpstreamLost
from sglang.srt.errors import ConfigError, EngineDeadError, OverloadError, StateLostError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]


class Serve:
    """What Serve does with a call of a handle: asks the router, and lets the replica answer."""

    def __init__(self, names: str, router_class: type = PrefixRouter) -> None:
        self.router = router_class.__new__(router_class)
        self.router._replicas = {}
        self.router.initialize_state(1 << 16)
        for name in names:
            self.router._replicas[Id(name)] = SimpleNamespace(replica_id=Id(name))
        self.bits = dict.fromkeys(names, "same")
        self.silent: set[str] = set()
        self.frozen: set[str] = set()
        """those that Serve passes over since they do not tell it how long their queues are"""
        self.num_probes = 0
        self.calls: list[str] = []
        self.running: dict[str, int] = dict.fromkeys(names, 0)
        self.deaths = {name: asyncio.Event() for name in names}
        self.lease = SimpleNamespace(remote=lambda asked: Response(self, asked))


class Id(str):
    """Of a replica."""

    @property
    def unique_id(self) -> str:
        return str(self)


class Response:
    """One call, which lasts until it is cancelled."""

    def __init__(self, serve: Serve, asked: dict[str, Any]) -> None:
        self._serve, self._asked, self._name = serve, asked, ""

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        serve = self._serve
        pending = SimpleNamespace(args=[self._asked], routing_context=SimpleNamespace(should_backoff=False))
        ranks = await serve.router.choose_replicas(list(serve.router.curr_replicas.values()), pending)
        if not ranks:
            await asyncio.Event().wait()
        first = ranks[0][0].replica_id
        serve.num_probes += first in serve.frozen
        name = next(rank[0].replica_id for rank in ranks if rank[0].replica_id not in serve.frozen)
        serve.calls.append(name)
        if name in serve.silent:
            await asyncio.Event().wait()
        serve.router.on_request_routed(pending, name, None)
        self._name = name
        serve.running[name] += 1
        place = {"host": name, "port": 1, "token": "", "pid": 1, "fingerprint": serve.bits[name], "replica": str(name)}
        yield place
        try:
            await serve.deaths[name].wait()
        except asyncio.CancelledError:  # so it comes where the call is cancelled as well
            raise RequestCancelledError("1") from None
        raise RayActorError

    def cancel(self) -> None:
        if self._name:
            self._serve.running[self._name] -= 1
            self._name = ""


@contextlib.contextmanager
def pool_of(serve: Serve, wait: float = 5.0) -> Iterator[RayPool]:
    kept = set(live.ROUTERS)
    live.ROUTERS.clear()
    live.ROUTERS.add(serve.router)
    pool = RayPool(SimpleNamespace(), ServedModel("m", {}), {}, wait)  # type: ignore[arg-type]
    pool._handle = serve
    try:
        yield pool
    finally:
        live.ROUTERS.clear()
        live.ROUTERS.update(kept)


def key_of(text: str, length: int = 640) -> RouteKey:
    return RouteKey(tuple(block_hashes([], (f"{text}{i}".encode() for i in range(length // 64)))), length, 64)


async def test_requests_one_after_the_other_take_one_call() -> None:
    serve = Serve("ab")
    with pool_of(serve) as pool:
        homes = []
        for _ in range(20):
            async with pool.lease("m", key_of("x")) as turn:
                homes.append(turn.replica)
        assert len(serve.calls) == 1 and set(homes) == {homes[0]}
        await asyncio.sleep(3 * leases.KEEP_SECONDS)
        assert serve.running == {"a": 0, "b": 0}, "given back soon"
        async with pool.lease("m", key_of("x")):
            assert sum(serve.running.values()) == 1
        assert len(serve.calls) == 2


async def test_what_serve_counts_is_what_runs_and_a_few() -> None:
    serve = Serve("ab")
    with pool_of(serve) as pool:
        async with contextlib.AsyncExitStack() as stack:
            for i in range(40):
                await stack.enter_async_context(pool.lease("m", key_of(f"{i}")))
            assert sum(serve.running.values()) == 40
        assert all(count <= leases.MAX_FREE for count in serve.running.values())
        assert sum(replica.num_requests for replica in serve.router._policy._replicas) == 0, (
            "the router counts requests, not leases"
        )
        await asyncio.sleep(3 * leases.KEEP_SECONDS)
        assert serve.running == {"a": 0, "b": 0}


async def test_a_replica_that_dies_breaks_off_what_is_said_to_its_server() -> None:
    """Its server may be frozen, or its machine gone: nobody else would close the connection."""
    serve = Serve("ab")
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    with pool_of(serve) as pool:
        async with pool.lease("m", key_of("x")) as turn, pool.lease("m", key_of("y")) as other:
            assert turn.replica != other.replica
            for one in (turn, other):
                one.upstream._address = Address(host="127.0.0.1", port=silent.sockets[0].getsockname()[1])
            asked, others = (asyncio.ensure_future(one.upstream.ask("POST", "/generate")) for one in (turn, other))
            await asyncio.sleep(0.1)
            assert not asked.done() and not others.done()
            serve.deaths[turn.replica].set()
            with pytest.raises(UpstreamLost):
                await asyncio.wait_for(asked, 10)
            assert not others.done()
            others.cancel()
    silent.close()


async def test_a_lease_that_is_given_back_breaks_nothing_off() -> None:
    """Other requests go on at its server."""
    serve = Serve("a")
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    with pool_of(serve) as pool:
        async with pool.lease("m", key_of("x")) as turn:
            turn.upstream._address = Address(host="127.0.0.1", port=silent.sockets[0].getsockname()[1])
            asked = asyncio.ensure_future(turn.upstream.ask("POST", "/generate"))
            await asyncio.sleep(0.1)
            async with contextlib.AsyncExitStack() as stack:
                for i in range(leases.MAX_FREE + 3):
                    await stack.enter_async_context(pool.lease("m", key_of(f"{i}")))
            await asyncio.sleep(0.1)
            assert serve.running["a"] <= 1 + leases.MAX_FREE and not asked.done()
            asked.cancel()
    silent.close()


async def test_a_gateway_is_not_healthy_before_its_first_replica() -> None:
    """A request would not wait for it."""
    with pool_of(Serve("a")) as pool:
        gateway = Gateway(pool, GatewayMetrics(), page=False)
        assert (gateway._health().status_code, bytes(gateway._health().body)) == (503, b'{"status":"starting"}')
        pool.entries["m"].state = "ready"
        assert gateway._health().status_code == 200


async def test_one_that_answers_in_place_of_another_is_remembered() -> None:
    """Serve asks the next one by itself where the first gives no sign: each request would wait for that."""
    serve = Serve("ab")
    with pool_of(serve) as pool:
        async with pool.lease("m", key_of("x")) as turn:
            first = turn.replica
        await asyncio.sleep(3 * leases.KEEP_SECONDS)
        serve.frozen.add(first)
        for _ in range(3):
            async with pool.lease("m", key_of("x")) as turn:
                assert turn.replica != first
            await asyncio.sleep(3 * leases.KEEP_SECONDS)
        assert serve.num_probes == 1


async def test_a_free_lease_changes_no_choice() -> None:
    """The replica that has the prefix gets the request, whichever has a lease that is free."""
    serve = Serve("ab")
    with pool_of(serve) as pool:
        homes = {}
        for text in "xy":
            async with pool.lease("m", key_of(text)) as turn:
                homes[text] = turn.replica
        assert sorted(homes.values()) == ["a", "b"]
        for text in "xxyxyyyx":
            async with pool.lease("m", key_of(text)) as turn:
                assert turn.replica == homes[text]


async def test_a_server_that_was_lost_is_not_asked_again_without_serve() -> None:
    serve = Serve("ab")
    with pool_of(serve) as pool:
        async with pool.lease("m", key_of("x")) as turn:
            home = turn.replica
        with pytest.raises(KeyError):
            async with pool.lease("m", key_of("x")):
                raise KeyError  # as Lost does
        assert not pool._free.take(home) and serve.running[home] == 0
        async with pool.lease("m", key_of("x"), lost={home}) as turn:
            assert turn.replica != home


async def test_a_replica_that_does_not_answer_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TURN_SECONDS", 0.05)
    serve = Serve("ab")
    with pool_of(serve) as pool:
        async with pool.lease("m", key_of("x")) as turn:
            home = turn.replica
        await asyncio.sleep(3 * leases.KEEP_SECONDS)
        serve.silent, serve.calls = {home}, []
        for _ in range(3):
            async with pool.lease("m", key_of("x")) as turn:
                assert turn.replica != home
        assert serve.calls.count(home) == 1, "the others did not wait for it"
        serve.silent = {"a", "b"}
        await asyncio.sleep(3 * leases.KEEP_SECONDS)
        pool._wait = 0.3
        with pytest.raises(OverloadError, match="no replica"):
            async with pool.lease("m", key_of("y")):
                pass


async def test_only_the_same_bits_go_on() -> None:
    serve = Serve("abc")
    serve.bits["a"] = serve.bits["b"] = "other"
    with pool_of(serve) as pool:
        for _ in range(3):
            async with pool.lease("m", key_of("x"), fingerprint="same") as turn:
                assert turn.replica == "c"
        serve.bits["c"] = "third"
        pool._free.drop("c")
        with pytest.raises(EngineDeadError, match="other weights or kernels"):
            async with pool.lease("m", key_of("y"), fingerprint="none"):
                pass
        assert sum(serve.running.values()) <= 3 * leases.MAX_FREE


async def test_one_replica_alone() -> None:
    serve = Serve("ab")
    with pool_of(serve) as pool:
        for name in "abba":
            async with pool.lease("m", key_of("x"), replica=name) as turn:
                assert turn.replica == name
        with pytest.raises(StateLostError):
            async with pool.lease("m", key_of("x"), replica="gone"):
                pass


async def test_progress_and_ends_reach_the_router() -> None:
    serve = Serve("a")
    with pool_of(serve) as pool:
        async with pool.lease("m", key_of("x")) as turn:
            replica = serve.router._policy._replicas[0]
            assert replica.prefill == 640 and replica.num_requests == 1
            turn.heard(3)
            assert replica.prefill == 0
        assert replica.num_requests == 0 and not serve.router._open


class Broken(PrefixRouter):
    def _ranked(self, replicas: list[Any], key: dict[str, Any]) -> list[Any]:
        raise RuntimeError("broken")

    def _queue_len(self, replica: Any) -> int:
        return {"a": 3, "b": 1}[replica.replica_id]


async def test_a_router_that_fails_takes_the_least_loaded() -> None:
    serve = Serve("ab", Broken)
    with pool_of(serve) as pool:
        for _ in range(3):
            async with pool.lease("m", key_of("x")) as turn:
                assert turn.replica == "b"


@pytest.mark.parametrize(
    "address", ["ray://127.0.0.1:10001", "here", "127.0.0.1:", ":6379", "127.0.0.1:1", "127.0.0.1:99999999"]
)
def test_an_address_where_no_ray_is(address: str) -> None:
    with pytest.raises(ConfigError, match="--ray"):
        connection.connect(address)


def test_a_cluster_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("Version mismatch: the cluster was started with Ray 2.9.0")

    monkeypatch.setattr(connection.ray, "init", init)
    with pytest.raises(ConfigError, match="cannot be used: Version mismatch"):
        connection.connect("auto")
