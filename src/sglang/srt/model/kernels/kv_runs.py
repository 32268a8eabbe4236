"""Runs of the KV pool as bytes, for who keeps them elsewhere (forward_batch.KVRuns). Only copies: nothing is computed, and other
threads may compute meanwhile, as long as nobody writes to the slots that are read.

The two classes are for the two layouts of a host's pool:

    native      [run][layer][K: head, dim, 16 slots | V: head, 16 slots, dim]  float16      (KVView in csrc/args.h)
    reference   one array [slot][head][dim] for K and one for V of each layer  float32
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


class NativeRuns:
    """`memory`: float16 bits [num_runs, num_layers, 2, num_heads * head_dim * run], the head dimension padded."""

    def __init__(self, memory: npt.NDArray[np.uint16], num_heads: int, run: int) -> None:
        num_runs, num_layers, _, half = memory.shape
        self.run = run
        self.run_bytes = memory[0].nbytes
        head_dim = half // (num_heads * run)
        self.layout = f"native 1: {num_layers} layers, {num_heads} heads of {head_dim}, runs of {run}, float16"
        self._memory = memory
        self._k_shape = (num_layers, num_heads, head_dim, run)
        self._v_shape = (num_layers, num_heads, run, head_dim)

    def read(self, slots: Int32, out: Bytes) -> None:
        """`out` [run_bytes] = what lies in `slots` [run], whose ith is a slot with the same place i in its run."""
        target = out.view(np.uint16).reshape(self._memory.shape[1:])
        for start, end, first in _pieces(slots, self.run):
            source = self._memory[first // self.run]
            if end - start == self.run:
                target[...] = source
                continue
            k, v = slice(start, end), (slice(None), slice(None), slice(start, end))
            target[:, 0].reshape(self._k_shape)[..., k] = source[:, 0].reshape(self._k_shape)[..., k]
            target[:, 1].reshape(self._v_shape)[v] = source[:, 1].reshape(self._v_shape)[v]

    def write(self, slot: int, data: Bytes) -> None:
        """Puts what `read` gave into the run that begins at `slot`."""
        self._memory[slot // self.run] = data.view(np.uint16).reshape(self._memory.shape[1:])


class ReferenceRuns:
    """`arrays`: K and V of each layer, [num_slots, num_heads, head_dim] float32."""

    def __init__(self, arrays: Sequence[npt.NDArray[np.float32]], run: int) -> None:
        num_slots, num_heads, head_dim = arrays[0].shape
        self.run = run
        self.layout = f"reference 1: {len(arrays)} arrays, {num_heads} heads of {head_dim}, runs of {run}, float32"
        self._arrays = arrays
        self._shape = (len(arrays), run, num_heads, head_dim)
        self.run_bytes = int(np.prod(self._shape)) * 4

    def read(self, slots: Int32, out: Bytes) -> None:
        """As NativeRuns.read."""
        for target, array in zip(out.view(np.float32).reshape(self._shape), self._arrays, strict=True):
            target[...] = array[slots]

    def write(self, slot: int, data: Bytes) -> None:
        """As NativeRuns.write."""
        for source, array in zip(data.view(np.float32).reshape(self._shape), self._arrays, strict=True):
            array[slot : slot + self.run] = source


def _pieces(slots: Int32, run: int) -> Iterator[tuple[int, int, Any]]:
    """The parts of a record that lie in one run each, as (start, end, first slot of that run)."""
    firsts = slots - slots % run
    cuts = np.flatnonzero(np.diff(firsts)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), run], strict=True):
        yield start, end, int(firsts[start])
