"""The queue of requests that do not run, and the orders in which they may be admitted.

A policy is a function from the queue, in order of arrival, to a new order. Whatever it says, retracted requests come first,
then larger priorities, then the client who was served least (fair_share.py), then the larger of its own priorities, then those
of its requests that were overtaken too often: no order starves anyone of the same priority.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import groupby

from sglang.srt.scheduler.admission.fair_share import Client, FairShare, party
from sglang.srt.scheduler.cache.radix_cache import RadixCache, TreeNode
from sglang.srt.scheduler.req import Req

MATCH_LIMIT = 128
"""With more requests waiting, those orders that look each of them up in the tree fall back to order of arrival."""
MAX_OVERTAKEN = 64

Policy = Callable[[list[Req], RadixCache, random.Random], list[Req]]


def fcfs(reqs: list[Req], tree: RadixCache, rng: random.Random) -> list[Req]:
    """First come, first served."""
    return reqs


def lpm(reqs: list[Req], tree: RadixCache, rng: random.Random) -> list[Req]:
    """Longest prefix match first: what is cached is used before it is evicted."""
    if len(reqs) > MATCH_LIMIT:
        return reqs
    lengths = {req.rid: tree.match_len(req.prompt[: req.reuse_limit()], req.salt)[0] for req in reqs}
    return sorted(reqs, key=lambda req: -lengths[req.rid])


def dfs_weight(reqs: list[Req], tree: RadixCache, rng: random.Random) -> list[Req]:
    """The tree depth first, the subtree with most waiting requests first: near relatives run together."""
    if len(reqs) > MATCH_LIMIT:
        return reqs
    paths: dict[str, list[TreeNode]] = {}
    weights: dict[TreeNode, int] = {}
    for req in reqs:
        at: TreeNode | None = tree.match_len(req.prompt[: req.reuse_limit()], req.salt)[1]
        path = paths[req.rid] = []
        while at is not None:
            weights[at] = weights.get(at, 0) + 1
            path.append(at)
            at = at.parent
        path.reverse()
    # Siblings are told apart by (-weight, id), so that equal keys mean the same subtree. The end sorts a node after its children.
    end = (1, 0)
    return sorted(reqs, key=lambda req: [*[(-weights[node], node.id) for node in paths[req.rid]], end])


def shuffled(reqs: list[Req], tree: RadixCache, rng: random.Random) -> list[Req]:
    """Any order."""
    return rng.sample(reqs, len(reqs))


POLICIES: dict[str, Policy] = {"fcfs": fcfs, "lpm": lpm, "dfs-weight": dfs_weight, "random": shuffled}


class WaitingQueue:
    """Owner of the requests that wait: retracted ones in front, the others in order of arrival."""

    def __init__(self, policy: str, seed: int) -> None:
        self._policy = POLICIES[policy]
        self._rng = random.Random(seed)
        self._retracted: OrderedDict[str, Req] = OrderedDict()
        self._queue: OrderedDict[str, Req] = OrderedDict()
        self._shares = FairShare()
        self.due: Req | None = None
        """whose turn it is (turns.py): goes before all others"""
        self._num_special = 0  # waiting requests with a priority
        self._num_aged = 0  # waiting requests that were overtaken too often

    def __len__(self) -> int:
        return len(self._retracted) + len(self._queue)

    def __iter__(self) -> Iterator[Req]:
        yield from self._retracted.values()
        yield from self._queue.values()

    def num_of(self, key: str) -> int:
        """Requests of an API key, without those that were retracted."""
        return self._shares.num_of(key)

    def parties(self) -> set[Client]:
        """Whose requests wait (fair_share.party)."""
        return self._shares.parties() | set(map(party, self._retracted.values()))

    def call(self, client: Client | None) -> None:
        """Makes it the turn of a client's first request; None: nobody's."""
        own = [req for req in self if party(req) == client and not (req.media is not None and req.media.is_waiting)]
        self.due = max(own, key=lambda req: (req.msg.priority, req.msg.own_priority), default=None)

    def pass_over(self, req: Req) -> None:
        """It waits for something else than room: nobody need make way for it now."""
        if req is self.due:
            self.due = None

    def add(self, req: Req) -> None:
        self._queue[req.rid] = req
        self._shares.add(req)
        self._num_special += _has_priority(req)

    def push_front(self, req: Req) -> None:
        """Puts back a retracted request."""
        self._retracted[req.rid] = req
        self._retracted.move_to_end(req.rid, last=False)

    def get(self, rid: str) -> Req | None:
        return self._retracted.get(rid) or self._queue.get(rid)

    def remove(self, req: Req) -> None:
        self.pass_over(req)
        if self._retracted.pop(req.rid, None) is None:
            del self._queue[req.rid]
            self._shares.remove(req)
            self._num_special -= _has_priority(req)
            self._num_aged -= req.num_overtaken > MAX_OVERTAKEN

    def admit(self, req: Req) -> None:
        """Takes out a request that runs from now on."""
        if req.rid in self._queue:
            self._shares.charge(req)
        self.remove(req)

    def ordered(self, tree: RadixCache) -> Iterator[Req]:
        """Everyone, in the order of admission. Lazy, so that whom is served first counts for who comes next."""
        due = self.due
        if due is not None:
            yield due
        for req in self._in_order(tree):
            if req is not due:
                yield req

    def _in_order(self, tree: RadixCache) -> Iterator[Req]:
        order = self._policy(list(self._queue.values()), tree, self._rng)
        if self._num_special or self._num_aged:
            order = sorted(order, key=lambda r: (-r.msg.priority, -r.msg.own_priority, r.num_overtaken <= MAX_OVERTAKEN))
        yield from list(self._retracted.values())
        if self._shares.num_waiting < 2:
            yield from order
            return
        for _, peers in groupby(order, key=lambda r: r.msg.priority):
            yield from self._shares.order(peers)

    def note_admitted(self, admitted: list[Req]) -> None:
        """Counts, for those who still wait, how many later ones went before them. Called after the admitted were removed."""
        if not admitted:
            return
        latest = max(req.arrival for req in admitted)
        for req in self._queue.values():
            if req.arrival > latest:
                break
            before = req.num_overtaken
            req.num_overtaken += sum(o.arrival > req.arrival and o.msg.client == req.msg.client for o in admitted)
            self._num_aged += before <= MAX_OVERTAKEN < req.num_overtaken


def _has_priority(req: Req) -> bool:
    return bool(req.msg.priority or req.msg.own_priority)
