"""The table [row, position] -> slot of the KV pool: one row for each running request, read by the model as it is."""

from __future__ import annotations

import numpy as np

from sglang.srt.forward_batch import Int32Array


class ReqToToken:
    """Owns the rows. Entries of a free row are meaningless."""

    def __init__(self, num_rows: int, context_len: int) -> None:
        self.table: Int32Array = np.zeros((num_rows, context_len), dtype=np.int32)
        self.num_rows = num_rows
        self.context_len = context_len
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def alloc(self) -> int | None:
        """A free row, or None."""
        return self._free.pop() if self._free else None

    def free(self, row: int) -> None:
        assert row not in self._free
        self._free.append(row)

    def write_runs(self, row: int, start: int, bases: Int32Array, run: int) -> None:
        """Enters whole runs for positions from `start` on; `start` need not be aligned, `bases` are slots of aligned starts.
        Positions beyond the context have no entry."""
        first = start - start % run
        end = min(first + len(bases) * run, self.context_len)
        slots = (bases[:, None] + np.arange(run, dtype=np.int32)).reshape(-1)
        self.table[row, start:end] = slots[start - first : end - first]
