"""Who is served next when several clients wait: the one who was served least.

Every client has a tag, the service it was given in tokens: prompts, and what they may generate, counted at admission. The
waiting client with the smallest tag goes first. A client that was away does not come back with savings: its tag is lifted to
where those who stayed are. (Start-time fair queueing, Goyal et al. 1996; for language models Sheng et al. 2024.)

Clients are named by paths such as (API key, user): keys share first, and the users of a key share what the key gets, so that
nobody gets more by inventing users. Among the requests of a key its own priorities go before its users.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator

from sglang.srt.scheduler.req import Req

CLIP_NEW_TOKENS = 512
"""of a request's limit, which few reach"""
MAX_CLIENTS = 4096
"""tags; beyond, the smallest of clients who are absent are forgotten, which costs the others next to nothing"""

Client = tuple[str, ...]
ANONYMOUS: Client = ("", "")


def cost(req: Req) -> float:
    """What a request takes, in tokens."""
    return req.fill_len + min(req.num_left, CLIP_NEW_TOKENS)


class FairShare:
    """Owner of the tags."""

    def __init__(self) -> None:
        self._tags: dict[Client, float] = {}
        self._waiting: dict[Client, int] = {}
        """requests in the queue, below each node"""
        self._clients: set[Client] = set()
        self._levels: dict[Client, float] = {}
        """of the children of a node: the tag of the one that was served last, before it was served"""

    @property
    def num_waiting(self) -> int:
        """Clients with requests in the queue."""
        return len(self._clients)

    def parties(self) -> set[Client]:
        """Whose requests are in the queue."""
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
        """It is no longer in the queue, for whatever reason."""
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
    """Who holds its place: the API key, or where there is none, the user."""
    return _party(_client(req))


def _party(client: Client) -> Client:
    return client[:1] if client[0] else client


def _client(req: Req) -> Client:
    return req.msg.client or ANONYMOUS


def _nodes(client: Client) -> Iterator[Client]:
    """The client and those above it, outermost first."""
    for depth in range(1, len(client) + 1):
        yield client[:depth]
