"""The waiting queue, its order, and when a running request is retracted in favour of a waiting one.

A policy is a function from the queue, in order of arrival, to a new order. Under every policy retracted requests come first, then
larger priorities, then the client that was served least (FairShare), then the larger of its own priorities, then those of its requests
that were overtaken too often: no policy starves requests of the same priority.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

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
    """The tree depth first, the subtree with most waiting requests first: requests with common prefixes run together."""
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


# --- clients: who was served least -------------------------------------------------------------------------------------------


CLIP_NEW_TOKENS = 512
"""of a request's limit, which few reach"""
MAX_CLIENTS = 4096
"""tags; beyond, the smallest of clients who are absent are forgotten, which costs the others next to nothing"""

Client = tuple[str, ...]
ANONYMOUS: Client = ("", "")


def cost(req: Req) -> float:
    """The cost of a request, in tokens."""
    return req.fill_len + min(req.num_left, CLIP_NEW_TOKENS)


class FairShare:
    """Fairness between clients: the waiting client that was served least is next.

    Every client has a tag, the service it was given in tokens: prompts, and what they may generate, counted at admission. The
    waiting client with the smallest tag goes first. A client that was away does not come back with savings: its tag is lifted to
    where those who stayed are. (Start-time fair queueing, Goyal et al. 1996; for language models Sheng et al. 2024.)

    Clients are named by paths such as (API key, user), or ("", address, user): keys share first, and the users of a key share what the key gets, so that
    nobody gets more by inventing users. Among the requests of a key its own priorities go before its users.

    Owner of the tags.
    """

    def __init__(self) -> None:
        self._tags: dict[Client, float] = {}
        self._waiting: dict[Client, int] = {}
        """requests in the queue, below each node"""
        self._clients: set[Client] = set()
        self._levels: dict[Client, float] = {}
        """of the children of a node: the tag of the one that was served last, before it was served"""

    @property
    def num_waiting(self) -> int:
        """The number of clients with requests in the queue."""
        return len(self._clients)

    def parties(self) -> set[Client]:
        """Clients with requests in the queue."""
        return set(map(_party, self._clients))

    def num_of(self, key: str) -> int:
        """Requests of an API key in the queue."""
        return self._waiting.get((key,), 0)

    def add(self, req: Req) -> None:
        client = _client(req)
        self._clients.add(client)
        for node in _nodes(client):
            count = self._waiting.get(node, 0)
            self._waiting[node] = count + 1
            if not count:
                self._tags[node] = max(self._tags.get(node, 0.0), self._levels.get(node[:-1], 0.0))

    def remove(self, req: Req) -> None:
        """The request has left the queue."""
        client = _client(req)
        for node in _nodes(client):
            self._waiting[node] -= 1
            if not self._waiting[node]:
                del self._waiting[node]
        if client not in self._waiting:
            self._clients.discard(client)

    def charge(self, req: Req) -> None:
        """It was admitted."""
        for node in _nodes(_client(req)):
            before = self._tags.get(node, 0.0)
            self._levels[node[:-1]] = max(self._levels.get(node[:-1], 0.0), before)
            self._tags[node] = before + cost(req)
        if len(self._tags) > MAX_CLIENTS:
            self._forget()

    def _forget(self) -> None:
        absent = sorted((n for n in self._tags if n not in self._waiting), key=lambda n: self._tags[n])
        for node in absent[: -MAX_CLIENTS // 2]:
            del self._tags[node]
        parents = {n[:-1] for n in self._tags}
        self._levels = {n: level for n, level in self._levels.items() if n in parents}

    def order(self, reqs: Iterable[Req]) -> Iterator[Req]:
        """`reqs`, each time one of the client who was served least; requests of one client keep their order. Lazy: what is
        charged while it runs counts."""
        queues: dict[tuple[Client, int], deque[Req]] = {}
        for req in reqs:
            queues.setdefault((_client(req), req.msg.own_priority), deque()).append(req)
        heap = [(self._rank(*whose), i, whose) for i, whose in enumerate(queues)]
        heapq.heapify(heap)
        while heap:
            rank, i, whose = heapq.heappop(heap)
            now = self._rank(*whose)
            if now == rank:  # else it was served meanwhile, or another of its key was
                yield queues[whose].popleft()
                now = self._rank(*whose)
            if queues[whose]:
                heapq.heappush(heap, (now, i, whose))

    def _rank(self, client: Client, own_priority: int) -> tuple[float, ...]:
        key, *users = (self._tags.get(node, 0.0) for node in _nodes(client))
        return (key, -own_priority, *users)


def party(req: Req) -> Client:
    """The client that holds a request's place: the API key; without keys the address; for programs of this machine the user."""
    return _party(_client(req))


def _party(client: Client) -> Client:
    return client[:1] if client[0] else client[:2]


def _client(req: Req) -> Client:
    return req.msg.client or ANONYMOUS


def _nodes(client: Client) -> Iterator[Client]:
    """The client and those above it, outermost first."""
    for depth in range(1, len(client) + 1):
        yield client[:depth]


# --- the queue ---------------------------------------------------------------------------------------------------------------


class WaitingQueue:
    """Owner of the requests that wait: retracted ones in front, the others in order of arrival."""

    def __init__(self, policy: str, seed: int) -> None:
        self._policy = POLICIES[policy]
        self._rng = random.Random(seed)
        self._retracted: OrderedDict[str, Req] = OrderedDict()
        self._queue: OrderedDict[str, Req] = OrderedDict()
        self._shares = FairShare()
        self.due: Req | None = None
        """whose turn it is (Turns): goes before all others"""
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
        """Clients (party) with waiting requests."""
        return self._shares.parties() | set(map(party, self._retracted.values()))

    def call(self, client: Client | None) -> None:
        """Gives the turn to a client's first request; None takes it back."""
        own = [req for req in self if party(req) == client and not req.is_waiting]
        self.due = max(own, key=lambda req: (req.msg.priority, req.msg.own_priority), default=None)

    def pass_over(self, req: Req) -> None:
        """It waits for something other than memory: no request need be retracted for it now."""
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
        """All requests, in the order of admission. Lazy, so that each admission counts for the order of the next."""
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


# --- turns: running places for who has none ----------------------------------------------------------------------------------


WAIT_STEPS = 64


@dataclass(frozen=True)
class _Stay:
    """The stay of request `rid` in a running place, since step `since`, when it had `num_outputs` tokens. `num_steps`: steps
    without another request for the place."""

    since: int
    rid: str
    num_outputs: int
    num_steps: int

    def is_over(self, step: int) -> bool:
        return step - self.since >= self.num_steps

    def came_to_little(self, req: Req, step: int) -> bool:
        """Whether most of it went into computing what gets lost."""
        return req.rid == self.rid and 2 * (len(req.output_ids) - self.num_outputs) < step - self.since


class Turns:
    """Running places for clients that have none: no client waits without end because another's requests run for long.

    The queue is fair about who is next (FairShare), but nobody is next while all places, or all of the pool, are held. So a client that
    holds less than its share, and has waited for WAIT_STEPS, gets a turn: its first request goes before all others, and in each step the
    youngest request of the client that holds most is retracted, until there is room. It goes back into the queue, with its output.

        who waits      holds nothing, or fewer places than all of them divided by the clients that are there
        who makes way  a client that holds more; one with a single place has had it for WAIT_STEPS

    Who makes way may lose what it computed, and a long prompt takes more steps than that: so a request that came to little in its time has
    twice as much of it the next time. Else two prompts that do not fit into the pool together would take turns for ever.

    Owner of how long each client has waited. `queue`: those who wait.
    """

    def __init__(self, queue: WaitingQueue) -> None:
        self._queue = queue
        self._step = 0
        self._waited: dict[Client, int] = {}
        self._stays: dict[Client, _Stay] = {}
        """of clients that hold places: in their last one"""
        self._was_tried = False

    @property
    def is_due(self) -> bool:
        """Whether a client has the turn."""
        return self._queue.due is not None

    def note_step(self, running: Sequence[Req], admitted: Sequence[Req]) -> None:
        """Counts a step; called after each one. `running`: requests that hold a place."""
        self._step += 1
        if not admitted and not len(self._queue):
            self._waited.clear()
            return
        held = Counter(map(party, running))
        for req in admitted:
            num_steps = WAIT_STEPS << req.num_short_stays
            self._stays[party(req)] = _Stay(self._step, req.rid, len(req.output_ids), num_steps)
            self._waited.pop(party(req), None)
        self._stays = {client: stay for client, stay in self._stays.items() if client in held}
        waiting = self._queue.parties()
        share = len(running) // max(len(waiting | held.keys()), 1)
        short = [client for client in waiting if not held[client] or held[client] < share]
        self._waited = {client: self._waited.get(client, 0) + 1 for client in short}
        if self._waited and not self.is_due:
            self._call(held)

    def _call(self, held: Counter[Client]) -> None:
        """Gives the turn to the client that has waited longest, if another client's request can be retracted."""
        client = max(self._waited, key=self._waited.__getitem__)
        if self._waited[client] >= WAIT_STEPS and any(self._givers(held, client)):
            self._queue.call(client)
            self._was_tried = False

    def _givers(self, held: Counter[Client], client: Client) -> Iterator[Client]:
        """The clients that hold more than `client`, the one with most first."""
        own = held[client]
        for other, count in held.most_common():
            stay = self._stays.get(other)
            if other != client and count > own and (count > 1 or stay is None or stay.is_over(self._step)):
                yield other

    def makes_way(self, running: Sequence[Req]) -> Req | None:
        """The request that gives its place to the one whose turn it is. None if there may be room already, or if no request has
        to."""
        due = self._queue.due
        if due is None or not self._was_tried:
            self._was_tried = True
            return None
        for client in self._givers(Counter(map(party, running)), party(due)):
            own = [req for req in running if party(req) == client and req.msg.priority <= due.msg.priority]
            if own:
                req = max(own, key=lambda req: req.arrival)
                stay = self._stays.get(client)
                if stay is not None and stay.came_to_little(req, self._step):
                    req.num_short_stays += 1
                return req
        self._queue.call(None)
        return None
