"""The memory limit of sampling parameters, of a request and of all sequences in flight: most take hardly anything, a large logit_bias takes
megabytes."""

from __future__ import annotations

from collections.abc import Iterable

from sglang.srt.errors import RequestError
from sglang.srt.messages import TokenizedReq
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.limits.shares import Budget

MAX_PARAMETER_BYTES = 64 << 20
"""that the sampling parameters of one request take: every sequence has its own"""
ID_BYTES = 128
"""of an id in logit_bias or stop_token_ids, as objects"""
SMALL = 4096
"""bytes of a sequence's parameters that are not counted: the queue is bounded by number"""


def check_parameters(samplings: Iterable[SamplingParams]) -> None:
    """Raises RequestError if the parameters of a request's sequences are too much together."""
    size = sum(sampling.n * num_parameter_bytes(sampling) for sampling in samplings)
    if size > MAX_PARAMETER_BYTES:
        raise RequestError(
            f"the sampling parameters take {size >> 20} MiB for all sequences of this request, and {MAX_PARAMETER_BYTES >> 20} are "
            "the most: send fewer prompts at once, or a shorter logit_bias, stop or constraint",
            "sampling_params",
        )


def num_parameter_bytes(sampling: SamplingParams) -> int:
    """Bytes that those parameters take that may be long."""
    if sampling.is_short:
        return 0
    grammar = sampling.grammar
    size = ID_BYTES * (len(sampling.logit_bias or ()) + len(sampling.stop_token_ids))
    return size + sum(map(len, (*sampling.stop, *sampling.stop_regex))) + (len(grammar[1]) if grammar is not None else 0)


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
        """Frees the room that the sequence of that name took, if it took any."""
        if rid in self.held:
            self._budget.give_back(*self.held.pop(rid))

    def clear(self) -> None:
        """Forgets all parameters: nothing is in flight any more."""
        self.held: dict[str, tuple[str, int]] = {}
        """(owner, bytes) of those sequences that hold any"""
        self._budget = Budget(4 * MAX_PARAMETER_BYTES, 2 * MAX_PARAMETER_BYTES, "long sampling parameters are in flight")


def _owner(request: TokenizedReq) -> str:
    return request.client[0] if request.client else ""
