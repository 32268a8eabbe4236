"""Decode steps as graphs: body and head of a step of up to n requests recorded once and launched in one call.

    requests of the step     1   2   4   5 .. 8   9 .. 16   ...   249 .. 256   more
    graph of                 1   2   4   8        16              256          kernels one by one

A graph is recorded under launch bounds of its size; the kernels read the true counts on the device, so a smaller step in a
larger graph only launches programs that find nothing to do. Nothing has to be padded. Graphs share the step's static buffers. On
a device without graphs (tests) a recording is the calls themselves.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Callable

from sglang.srt.model.kernels.ops import Ops, StepShape
from sglang.srt.model.layers.buffers import StepBuffers

logger = logging.getLogger("sglang")


def graph_sizes(max_reqs: int) -> list[int]:
    """1, 2, 4 and then every multiple of 8, up to what holds max_reqs."""
    sizes = [size for size in (1, 2, 4) if size < max_reqs]
    sizes += range(8, max_reqs, 8)
    return [*sizes, max_reqs] if max_reqs > 0 else []


class DecodeGraphs:
    """Graphs of `run` (body and head of a step) for decode steps of up to max_reqs requests. Making it records all of them: the largest first, so that the others find memory for what is between."""

    def __init__(self, ops: Ops, step: StepBuffers, run: Callable[[], None], max_reqs: int) -> None:
        self._sizes = graph_sizes(max_reqs)
        self._graphs: dict[int, Callable[[], None]] = {}
        capture: Callable[[Callable[[], None]], Callable[[], None]] = getattr(ops, "capture", lambda calls: calls)
        began = time.perf_counter()
        for size in reversed(self._sizes):
            ops.bound(step.rows, size)
            ops.bound(step.head_rows, size)
            ops.bound_step(step.meta, StepShape(size, size, 1))
            self._graphs[size] = capture(run)
        logger.info("Recorded %d decode graphs in %.1f s.", len(self._sizes), time.perf_counter() - began)

    @property
    def max_reqs(self) -> int:
        return self._sizes[-1] if self._sizes else 0

    def replay(self, num_reqs: int) -> None:
        """The step that the buffers describe, of num_reqs requests with one row each, and all their logits."""
        self._graphs[self._sizes[bisect.bisect_left(self._sizes, num_reqs)]]()
