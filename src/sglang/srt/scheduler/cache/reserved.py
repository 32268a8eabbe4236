"""What is held for a prefix that is brought from elsewhere, while it is on its way."""

from __future__ import annotations

from sglang.srt.forward_batch import Int32Array
from sglang.srt.scheduler.cache.radix_cache import Match


class Reserved:
    """Slots for positions [start, start + len(slots)) of a prefix, of which the tree has the first `tree_len`, locked at `node`; `state`: a
    slot for the state at its end, or negative."""

    __slots__ = ("is_released", "node", "slots", "start", "state", "tree_len")

    def __init__(self, match: Match, start: int, slots: Int32Array, state: int = -1) -> None:
        self.node, self.tree_len = match.node, len(match.slots)
        self.start, self.slots, self.state = start, slots, state
        self.is_released = False
