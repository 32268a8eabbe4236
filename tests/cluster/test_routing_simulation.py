"""benchmarks/routing.py on small workloads: nothing is lost in it, and the policy is worth what it claims."""

from __future__ import annotations

import pytest

from benchmarks import routing
from benchmarks.routing import Prefixes, Replica, RoundRobin, simulate


@pytest.fixture()
def replicas(monkeypatch: pytest.MonkeyPatch) -> list[Replica]:
    """All that a simulation makes."""
    made: list[Replica] = []

    class Kept(Replica):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(routing, "Replica", Kept)
    return made


@pytest.mark.parametrize("name", ["shared", "chats", "unshared"])
def test_the_policy_against_round_robin(name: str, replicas: list[Replica]) -> None:
    make = {
        "shared": lambda: routing.shared(4, 5, prefix=1500, own=64, out=40, groups=8, each=10),
        "chats": lambda: routing.chats(4, 5, system=600, turns=3, own=64, out=40),
        "unshared": lambda: routing.unshared(4, 5, length=400, out=40),
    }[name]
    base, ours = simulate(make(), 4, RoundRobin(4)), simulate(make(), 4, Prefixes(4))
    least = {"shared": 1.3, "chats": 1.1, "unshared": 0.98}[name]
    assert ours.throughput >= least * base.throughput
    assert ours.hits >= base.hits - 0.001
    for replica in replicas:
        assert not replica.tree.check() and not replica.batch and not replica.queue
        held = sum(len(node.slots) for node in replica.tree.nodes())
        assert held + replica.num_free == routing.POOL, "every slot is free or in the tree"
