"""Where adapters add to the decoder's linear layers, and which rows of a step they add to."""

from __future__ import annotations

from collections.abc import Mapping

from sglang.srt.forward_batch import Int32Array
from sglang.srt.model.kernels.low_rank import AdapterBank, RowAdapters, group_rows, row_adapter_sizes
from sglang.srt.model.kernels.ops import Activation, Array, Ops


class AdapterSite:
    """A linear layer that adapters may add to. `outputs`: the decoder's name of each of its matrices -> columns, in their order.
    Without a bank nothing is ever added."""

    def __init__(self, ops: Ops, outputs: Mapping[str, int], in_features: int) -> None:
        self._ops = ops
        self.names, self.widths = tuple(outputs), tuple(outputs.values())
        self.in_features = in_features
        self.bank: AdapterBank | None = None

    def __call__(self, x: Activation, out: Array, adapters: RowAdapters | None) -> None:
        """`adapters`: of the rows of x; None in programs for steps without any."""
        if adapters is not None and self.bank is not None:
            self._ops.low_rank(self.bank, x, out, adapters)


class AdapterRows:
    """Owner of the static arrays that say which rows of a step have which adapter."""

    def __init__(self, ops: Ops, max_rows: int, num_slots: int) -> None:
        self._ops = ops
        self._inputs = ops.inputs(row_adapter_sizes(max_rows, num_slots))
        self.arrays = RowAdapters(**self._inputs.arrays)
        self._there = b""

    def load(self, row_adapter: Int32Array) -> None:
        """row_adapter: [num_rows], the slot of each row's adapter, -1 for none. What is there from the step before stays: decode steps of
        the same requests group alike."""
        asked = row_adapter.tobytes()
        if asked == self._there:
            return
        self._there = asked
        self._inputs.begin()
        num_tiles = group_rows(row_adapter, self._inputs.host)
        self._inputs.send()
        self._ops.bound(self.arrays.num_tiles, num_tiles)
        self._ops.bound(self.arrays.order, len(row_adapter))
