"""Running places for those who have none: nobody waits without end because somebody else's requests run for long.

The queue is fair about who is next (fair_share.py), but nobody is next while all places, or all of the pool, are held. So a client that
holds less than its share, and has waited for WAIT_STEPS, gets a turn: its first request goes before all others, and in each step the
youngest request of whoever holds most makes way, until there is room. That one goes back into the queue, with all that it has.

    who waits      holds nothing, or fewer places than all of them divided by the clients that are there
    who makes way  a client that holds more; one with a single place has had it for WAIT_STEPS

Who makes way may lose what it computed, and a long prompt takes more steps than that: so a request that came to little in its time has
twice as much of it the next time. Else two prompts that do not fit into the pool together would take turns for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sglang.srt.scheduler.admission.fair_share import Client, party
from sglang.srt.scheduler.admission.waiting import WaitingQueue
from sglang.srt.scheduler.req import Req

WAIT_STEPS = 64


@dataclass(frozen=True)
class _Stay:
    """In a running place, since step `since`, of request `rid`, which had `num_outputs` tokens then. `num_steps`: how many of them
    nobody else asks for the place."""

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
    """Owner of how long each client has waited. `queue`: those who wait."""

    def __init__(self, queue: WaitingQueue) -> None:
        self._queue = queue
        self._step = 0
        self._waited: dict[Client, int] = {}
        self._stays: dict[Client, _Stay] = {}
        """of clients that hold places: in their last one"""
        self._was_tried = False

    @property
    def is_due(self) -> bool:
        """Whether somebody's turn has come."""
        return self._queue.due is not None

    def note_step(self, running: Sequence[Req], admitted: Sequence[Req]) -> None:
        """After each step. `running`: all that hold a place."""
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
        """Makes the turn of whoever has waited longest, if somebody can make way."""
        client = max(self._waited, key=self._waited.__getitem__)
        if self._waited[client] >= WAIT_STEPS and any(self._givers(held, client)):
            self._queue.call(client)
            self._was_tried = False

    def _givers(self, held: Counter[Client], client: Client) -> Iterator[Client]:
        """Who has more than `client`, the one with most first."""
        own = held[client]
        for other, count in held.most_common():
            stay = self._stays.get(other)
            if other != client and count > own and (count > 1 or stay is None or stay.is_over(self._step)):
                yield other

    def makes_way(self, running: Sequence[Req]) -> Req | None:
        """Who gives its place to the request whose turn it is. None if that may find room as it is, or nobody has to."""
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
