"""Room for the sampling parameters of all sequences in flight: most take next to nothing, a large logit_bias takes megabytes."""

from __future__ import annotations

from sglang.srt.messages import TokenizedReq
from sglang.srt.server.limits.shares import Budget
from sglang.srt.server.validation import MAX_PARAMETER_BYTES, num_parameter_bytes

SMALL = 4096
"""bytes of a sequence's parameters that are not counted: the queue is bounded by number"""


class ParameterRoom:
    """Bytes that the parameters of the sequences in flight hold, each client's and all. `bounded`: False for a program that serves
    itself."""

    def __init__(self, bounded: bool) -> None:
        self._bounded = bounded
        self.clear()

    def take(self, request: TokenizedReq) -> None:
        """Raises OverloadError if there is no room now."""
        size = num_parameter_bytes(request.sampling) if self._bounded else 0
        if size > SMALL:
            self._budget.take(_owner(request), size)
            self.held[request.rid] = _owner(request), size

    def give_back(self, rid: str) -> None:
        """What the sequence of that name took, if it did."""
        if rid in self.held:
            self._budget.give_back(*self.held.pop(rid))

    def clear(self) -> None:
        """Nothing is in flight any more."""
        self.held: dict[str, tuple[str, int]] = {}
        """(owner, bytes) of those sequences that hold any"""
        self._budget = Budget(4 * MAX_PARAMETER_BYTES, 2 * MAX_PARAMETER_BYTES, "long sampling parameters are in flight")


def _owner(request: TokenizedReq) -> str:
    return request.client[0] if request.client else ""
