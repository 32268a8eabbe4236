"""Requests of batches (/v1/batches), which run while nobody else wants anything.

    nobody else is there     they wait and run like any others, fair among those who sent them
    another request comes    all of them stop at the next step: those that run are retracted, and they are held here until it has ended

So the most that another request waits for is the step that is being computed. What was computed stays in the prefix cache while there is
room, and a request that is held keeps its output.
"""

from __future__ import annotations

from sglang.srt.config import BACKGROUND
from sglang.srt.errors import OverloadError
from sglang.srt.messages import TokenizedReq
from sglang.srt.scheduler.admission.prefill import PrefillPlanner
from sglang.srt.scheduler.admission.waiting import WaitingQueue
from sglang.srt.scheduler.decode import RunningBatch
from sglang.srt.scheduler.req import Req


class Background:
    """Owner of the requests that are held. `num_live`: requests of batches, wherever they are; without any, nothing here is called."""

    def __init__(self, waiting: WaitingQueue, running: RunningBatch, prefill: PrefillPlanner) -> None:
        self._waiting, self._running, self._prefill = waiting, running, prefill
        self._held: dict[str, Req] = {}
        self.num_live = 0

    def __len__(self) -> int:
        return len(self._held)

    def room(self, msg: TokenizedReq, most: int) -> int:
        """How long the queue may be for this request: those of batches take half of it at most, and no place of another's. Raises
        OverloadError."""
        if msg.priority == BACKGROUND and self.num_live >= max(most // 2, 1):
            raise OverloadError(f"{self.num_live} requests of batches are here already; try again later")
        return most + self.num_live

    def enter(self) -> None:
        """A request of a batch has come."""
        self.num_live += 1

    def leave(self) -> None:
        """A request of a batch has ended."""
        self.num_live -= 1

    def remove(self, req: Req) -> bool:
        """Takes a request out that ends; False if it is not held."""
        return self._held.pop(req.rid, None) is not None

    def settle(self, num_live: int) -> None:
        """Holds them while others are among the `num_live` requests, and lets them go on when there are none. Called between steps,
        if there are any."""
        if num_live > self.num_live:
            self._hold()
        elif self._held:
            held, self._held = self._held, {}
            for req in held.values():
                self._waiting.add(req)
            self._prefill.unblock()

    def _hold(self) -> None:
        for req in [req for req in self._running.holders if req.msg.priority == BACKGROUND]:
            self._running.step_aside(req)
            self._held[req.rid] = req
        for req in [req for req in self._waiting if req.msg.priority == BACKGROUND and not req.is_waiting]:
            self._waiting.remove(req)
            self._held[req.rid] = req
