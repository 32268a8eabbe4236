"""The deltas for viewers add up to the tree itself, whatever happens to it, in bounded pieces; and a viewer changes nothing."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest

from sglang.srt.machine_view import NodeView
from sglang.srt.messages import FromScheduler, SchedulerStats, ViewDelta, ViewReq
from sglang.srt.scheduler import viewing
from sglang.srt.scheduler.cache.radix_cache import RadixCache
from sglang.srt.scheduler.viewing import Viewing
from tests.scheduler.toy import Harness, make_req


class Outbox:
    def __init__(self) -> None:
        self.deltas: list[ViewDelta] = []

    def send(self, message: Any) -> None:
        self.deltas.append(message)

    def let_read(self) -> None: ...


class Mirror:
    """The tree as a viewer has it."""

    def __init__(self) -> None:
        self.nodes: dict[int, NodeView] = {}

    def take(self, delta: ViewDelta) -> None:
        if delta.is_first:
            self.nodes.clear()
        self.nodes.update((node.id, node) for node in delta.nodes)
        for node_id in delta.gone:
            self.nodes.pop(node_id)


def told(tree: RadixCache) -> dict[int, tuple[Any, ...]]:
    return {
        n.id: (n.parent.id if n.parent else None, n.end - len(n.ids), len(n.ids), n.lock_ref > 0, n.num_hits)
        for n in tree.nodes()
    }


def known(mirror: Mirror) -> dict[int, tuple[Any, ...]]:
    return {n.id: (n.parent, n.start, n.length, n.is_locked, n.num_hits) for n in mirror.nodes.values()}


def deliver(view: Viewing, outbox: Outbox, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "SECONDS_BETWEEN", 0.0)
    while view.has_news:
        view.report(SchedulerStats)
    for delta in outbox.deltas:
        assert len(delta.nodes) <= viewing.NUM_AT_ONCE and len(delta.gone) <= viewing.NUM_AT_ONCE
        mirror.take(delta)
    outbox.deltas.clear()


@pytest.mark.parametrize("seed", range(6))
def test_deltas_add_up_to_the_tree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    tree = RadixCache(lambda slots: None, page_size=rng.choice((1, 4)))
    outbox, mirror = Outbox(), Mirror()
    view = Viewing(tree, outbox)
    monkeypatch.setattr(viewing, "NUM_AT_ONCE", 7)
    locked = []
    for step in range(300):
        ids = np.array([rng.randrange(3) for _ in range(rng.randrange(1, 40))], np.int32)
        salt = rng.choice((None, "secret-salt"))
        action = rng.randrange(6)
        if action < 3:
            tree.insert(ids, np.arange(len(ids), dtype=np.int32), salt)
        elif action == 3:
            node = tree.match_prefix(ids, salt).node
            tree.lock(node)
            tree.note_hit(node)
            locked.append(node)
        elif action == 4 and locked:
            tree.unlock(locked.pop(rng.randrange(len(locked))))
        else:
            tree.evict(rng.randrange(1, 30))
        if step == 50:
            view.look(True)
        if step >= 50 and rng.random() < 0.2:
            deliver(view, outbox, mirror, monkeypatch)
            assert known(mirror) == told(tree)
    deliver(view, outbox, mirror, monkeypatch)
    assert known(mirror) == told(tree)
    view.look(False)
    assert tree.observer is None


def test_more_nodes_than_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "MAX_NODES", 50)
    monkeypatch.setattr(viewing, "NUM_AT_ONCE", 10)
    rng = random.Random(1)
    tree = RadixCache(lambda slots: None)
    outbox, mirror = Outbox(), Mirror()
    view = Viewing(tree, outbox)
    for i in range(1000):
        if i == 300:
            view.look(True)
        ids = np.array([rng.randrange(4) for _ in range(12)], np.int32)
        tree.insert(ids, np.arange(12, dtype=np.int32))
        if i % 7 == 0:
            tree.evict(5)
        deliver(view, outbox, mirror, monkeypatch)
        assert len(mirror.nodes) <= 60
    real = told(tree)
    assert len(real) > 60
    assert {i: entry[:3] for i, entry in known(mirror).items()}.items() <= {i: entry[:3] for i, entry in real.items()}.items()
    tree.reset()
    deliver(view, outbox, mirror, monkeypatch)
    assert not mirror.nodes


def test_the_state_is_told_when_it_changes_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "SECONDS_BETWEEN", 0.0)
    outbox = Outbox()
    view = Viewing(RadixCache(lambda slots: None), outbox)
    view.look(True)
    for num_waiting in (3, 3, 2, 2, 0):  # aborted while they waited
        view.report(partial(SchedulerStats, num_waiting=num_waiting))
    assert [delta.stats.num_waiting for delta in outbox.deltas] == [3, 2, 0]
    view.look(False)
    view.report(lambda: SchedulerStats(num_waiting=1))
    assert len(outbox.deltas) == 3


class Watched(Harness):
    """A scheduler that is looked at, step by step."""

    def __init__(self) -> None:
        self.mirror, self.steps = Mirror(), 0
        super().__init__()
        self.put(ViewReq(True))

    def send(self, message: FromScheduler) -> None:
        if isinstance(message, ViewDelta):
            self.mirror.take(message)
            self.steps += len(message.steps)
        else:
            super().send(message)

    def step(self) -> bool:
        worked = super().step()
        self.scheduler._viewing.report(self.scheduler._snapshot)
        return worked


def answers_of(harness: Harness) -> list[list[int]]:
    rng = random.Random(3)
    shared = [rng.randrange(200) for _ in range(60)]
    reqs = []
    for i in range(12):
        prompt = shared[: rng.randrange(1, 60)] + [rng.randrange(200) for _ in range(rng.randrange(1, 30))]
        length, temperature = rng.randrange(1, 30), rng.choice((0.0, 1.0))
        reqs.append(make_req(str(i), prompt, max_new_tokens=length, temperature=temperature, seed=i))
    return [answer.ids for answer in harness.run(*reqs)]


def test_a_viewer_changes_no_answer_and_sees_the_cache_s_own_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "SECONDS_BETWEEN", 0.0)
    plain, watched = Harness(), Watched()
    assert answers_of(watched) == answers_of(plain)
    watched.step()
    assert known(watched.mirror) == told(watched.scheduler.memory.tree) != {}
    assert any(node.num_hits > 1 for node in watched.mirror.nodes.values())
    assert watched.steps == watched.scheduler._snapshot().num_steps
    assert plain.scheduler.memory.tree.observer is None


def test_nothing_is_sent_before_somebody_looks_nor_after(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox()
    view = Viewing(RadixCache(lambda slots: None), outbox)
    view.report(SchedulerStats)
    assert outbox.deltas == [] and view.limit(1.0) == 1.0
    view.look(True)
    assert view.limit(1.0) <= viewing.SECONDS_BETWEEN
    view.report(SchedulerStats)
    view.look(True)
    view.report(SchedulerStats)
    assert len(outbox.deltas) == 2 and all(delta.is_first for delta in outbox.deltas)
    view.look(False)
    view.report(SchedulerStats)
    assert len(outbox.deltas) == 2
