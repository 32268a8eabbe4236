"""Memory for the next rows of all decoding requests; when there is none, a request is retracted.

A retracted request gives up its slots (what it computed stays in the prefix cache while there is room) and waits at the front of the
queue, or inside the queue if it was retracted for another client (admission/waiting.py). It keeps its output, its grammar state and
its seed, so that only its latency changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sglang.srt.scheduler.admission.prefill import OutputEstimate, PrefillPlanner
from sglang.srt.scheduler.admission.waiting import Turns, WaitingQueue, party
from sglang.srt.scheduler.batch import Extend
from sglang.srt.scheduler.cache.kv_memory import KvMemory
from sglang.srt.scheduler.req import Req

HEADROOM_TOKENS = 20
"""After a retraction each of the others can go on for so long."""


class RunningBatch:
    """Owner of the requests that decode. A step has room for `step_tokens` rows."""

    def __init__(
        self,
        memory: KvMemory,
        waiting: WaitingQueue,
        prefill: PrefillPlanner,
        estimate: OutputEstimate,
        step_tokens: int,
    ) -> None:
        self._memory = memory
        self._waiting = waiting
        self._prefill = prefill
        self._estimate = estimate
        self._step_tokens = step_tokens
        self.reqs: list[Req] = []
        self.num_retractions = 0

    @property
    def holders(self) -> list[Req]:
        """All that hold a place."""
        return [*self.reqs, self._prefill.partial] if self._prefill.partial is not None else list(self.reqs)

    def reserve_step(self) -> list[Req]:
        """Reserves slots for all tokens that each request has, retracting if it must. Returns requests that can go no further:
        alone in the pool, they fill it."""
        stuck: list[Req] = []
        while True:
            short = [r for r in self.reqs if r.hold is not None and r.hold.reserved_len < r.fill_len]
            if not short:
                return stuck
            if self._memory.grow_by_one([r.hold for r in short if r.hold is not None]):
                continue
            victim = self._victim()
            if victim is not None:
                self.retract(victim)
                self._make_headroom()
                continue
            last = self.reqs[0]
            if last.no_reuse or not self._memory.fits_alone(last.fill_len):
                self.reqs.remove(last)
                stuck.append(last)
            else:  # its prefix lies scattered over too many runs: start afresh, in one piece
                last.no_reuse = True
                self.retract(last)

    def split(self, sits_out: Callable[[Req], bool]) -> tuple[list[Req], list[Extend]]:
        """Who takes one row in the next step, and who takes several because tokens were forced on it. The rows of the latter
        are cut where a step ends. A prompt whose first token is late begins with its last row."""
        decodes: list[Req] = []
        jumps: list[Extend] = []
        spare = self._step_tokens - len(self.reqs)
        for req in self.reqs:
            assert req.hold is not None
            if sits_out(req):
                continue
            start, end = req.hold.kv_len, req.fill_len
            if end - start == 1 and req.ending is None and req.output_ids:
                decodes.append(req)
                continue
            end = min(end, start + 1 + spare)
            spare -= end - start - 1
            jumps.append(Extend(req, start, end, end == req.fill_len, False, is_jump=True))
        return decodes, jumps

    def retract(self, req: Req) -> None:
        """Takes a running request off the batch and back to the front of the queue, since memory ran out."""
        self._take_off(req)
        self._waiting.push_front(req)
        self._estimate.note_retraction(self.reqs)

    def give_turn(self, turns: Turns) -> None:
        """A client that has waited for long takes the place of another client's request, which goes back into the queue."""
        req = turns.makes_way(self.holders)
        if req is not None:
            self._take_off(req)
            self._waiting.add(req)
        self._prefill.unblock()

    def _take_off(self, req: Req) -> None:
        assert req.hold is not None
        self._memory.close(req.hold, req.fill_ids())
        req.hold = None
        if self._prefill.partial is req:
            self._prefill.partial = None
        else:
            self.reqs.remove(req)
        req.num_retractions += 1
        self.num_retractions += 1

    def retract_one(self) -> None:
        """For tests: as if memory had run out."""
        if self.reqs:
            self.retract(self._victim() or self.reqs[0])

    def _victim(self) -> Req | None:
        """Of the client that holds most places, who loses least: fewest outputs, then the longest prompt. None when only one is
        left."""
        candidates = self.holders
        if len(candidates) < 2:
            return None
        held = Counter(map(party, candidates))
        most = max(held.values())
        candidates = [req for req in candidates if held[party(req)] == most]
        return min(candidates, key=lambda req: (len(req.output_ids), -req.prompt_len))

    def _make_headroom(self) -> None:
        while self._memory.num_available < len(self.reqs) * (HEADROOM_TOKENS + self._memory.run):
            victim = self._victim()
            if victim is None:
                return
            self.retract(victim)
