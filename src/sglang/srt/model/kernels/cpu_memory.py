"""Between Python and kernels that run while it goes on: the memory is one, the moments are not.

What an op reads or writes belongs to it until it has run. So inputs are written to copies and get to their place in turn, as
an op like any other, and so do results on their way out. Nothing here waits but `StagedInputs.begin`, when it is RING steps ahead,
and `CopiedFetch.result`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]

RING = 3
"""steps that may be on their way at once"""
ALIGN = 16
"""ints: every array starts on a line of its own"""


class StagedInputs:
    """ops.Inputs: one block that the ops read, and RING copies of it, written in turn."""

    def __init__(self, runtime: Any, sizes: Mapping[str, int]) -> None:
        ranges: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            ranges[name] = slice(end, end + size)
            end += -(-max(size, 1) // ALIGN) * ALIGN
        self._runtime = runtime
        self._block: Int32 = np.zeros(end, np.int32)
        self.arrays: Mapping[str, Int32] = {name: self._block[span] for name, span in ranges.items()}
        self._ring: list[Int32] = [np.zeros(end, np.int32) for _ in range(RING)]
        self._views = [{name: copy[span] for name, span in ranges.items()} for copy in self._ring]
        self._sent = [0] * RING
        self._turn = 0

    @property
    def host(self) -> Mapping[str, Int32]:
        return self._views[self._turn]

    def begin(self) -> None:
        self._turn = (self._turn + 1) % RING
        self._runtime.wait(self._sent[self._turn])

    def send(self) -> None:
        self._sent[self._turn] = self._runtime.copy(self._block, self._ring[self._turn])


class CopiedFetch:
    """ops.Fetch: the copy is made when its turn comes."""

    def __init__(self, runtime: Any, x: npt.NDArray[Any]) -> None:
        self._runtime = runtime
        self._values = np.empty_like(x, order="C")
        self._job: int = runtime.copy(self._values, x)

    def result(self) -> npt.NDArray[Any]:
        self._runtime.wait(self._job)
        return self._values
