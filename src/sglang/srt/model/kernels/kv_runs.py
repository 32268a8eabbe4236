"""Runs of the KV pool as bytes, for who keeps them elsewhere (forward_batch.KVRuns). Only copies: nothing is computed, and other
threads may compute meanwhile, as long as nobody writes to the slots that are read.

The two classes are for the two layouts of a host's pool:

    native      [run][layer][K: head, dim, 16 slots | V: head, 16 slots, dim]  float16      (KVView in csrc/args.h), in 8 bits
                ... | scales: head, K and V, 16 slots] float32
    reference   one array [slot][head][dim] for K and one for V of each layer, float32; in 8 bits also [slot][head] of their scales
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.forward_batch import KVRuns

Int32 = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


def release_pages(memory: npt.NDArray[Any]) -> tuple[int, int]:
    """Gives the whole pages below an array back to the system: they are zeros when they are next read. Only for memory that was mapped
    by itself. Returns the bytes of it, from and to, that were given back: none where the system cannot."""
    if sys.platform != "linux" or not len(memory):
        return 0, 0
    start = memory.__array_interface__["data"][0]
    end = start + (len(memory) - 1) * memory.strides[0] + memory[0].nbytes
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= last or ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED):
        return 0, 0
    return first - start, last - start


class NativeRuns:
    """`memory`: [num_runs, num_layers, bytes of a layer], the head dimension padded. `form`: float16, int8 or fp8_e4m3."""

    def __init__(self, memory: Bytes, num_heads: int, run: int, form: str) -> None:
        _, num_layers, layer_bytes = memory.shape
        self.run = run
        self.run_bytes = num_layers * layer_bytes
        self._memory = memory
        self._value: Any = np.uint16 if form == "float16" else np.uint8
        scales = 0 if form == "float16" else 2 * num_heads * run * 4
        self._half = (layer_bytes - scales) // 2
        head_dim = self._half // (num_heads * run * np.dtype(self._value).itemsize)
        self.layout = f"native 1: {num_layers} layers, {num_heads} heads of {head_dim}, runs of {run}, {form}"
        self._shapes = (
            (num_layers, num_heads, head_dim, run),
            (num_layers, num_heads, run, head_dim),
            (num_layers, num_heads, 2, run),
        )

    def read(self, slots: Int32, out: Bytes) -> None:
        """`out` [run_bytes] = what lies in `slots` [n <= run], whose ith is a slot with the same place i in its run."""
        target = out.reshape(self._memory.shape[1:])
        if len(slots) < self.run:
            target[...] = 0
        for start, end, first in _pieces(slots, self.run):
            source = self._memory[first // self.run]
            if end - start == self.run:
                target[...] = source
                continue
            for to, part in zip(self._by_place(target), self._by_place(source), strict=True):
                to[..., start:end] = part[..., start:end]

    def write(self, slot: int, data: Bytes) -> None:
        """Puts what `read` gave into the run that begins at `slot`."""
        self._memory[slot // self.run] = data.reshape(self._memory.shape[1:])

    def _by_place(self, layers: Bytes) -> list[npt.NDArray[Any]]:
        """Views of a run [num_layers, bytes of a layer], the last axis of each being places in the run."""
        k_shape, v_shape, scale_shape = self._shapes
        k = layers[:, : self._half].view(self._value).reshape(k_shape)
        v = layers[:, self._half : 2 * self._half].view(self._value).reshape(v_shape).swapaxes(2, 3)
        scales = layers[:, 2 * self._half :]
        return [k, v, scales.view(np.float32).reshape(scale_shape)] if scales.size else [k, v]

    def arena(self, num_bytes: int) -> Bytes:
        """Any memory: the pool is in the same."""
        return np.empty(num_bytes, np.uint8)

    def release(self, slot: int) -> None:
        """Slots from `slot` on hold nothing."""
        release_pages(self._memory[-(-slot // self.run) :])


class ReferenceRuns:
    """`arrays`: of all layers, each [num_slots, ...]: the first is K, [num_slots, num_heads, head_dim]."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], run: int) -> None:
        _, num_heads, head_dim = arrays[0].shape
        self.run = run
        self.layout = (
            f"reference 1: {len(arrays)} arrays, {num_heads} heads of {head_dim}, runs of {run}, {arrays[0].dtype.name}"
        )
        self._arrays = arrays
        self.run_bytes = sum(run * array[0].nbytes for array in arrays)

    def read(self, slots: Int32, out: Bytes) -> None:
        """As NativeRuns.read."""
        for part, array in self._parts(out):
            part[: len(slots)], part[len(slots) :] = array[slots], 0

    def write(self, slot: int, data: Bytes) -> None:
        """As NativeRuns.write."""
        for part, array in self._parts(data):
            array[slot : slot + self.run] = part

    def _parts(self, record: Bytes) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """The part of a record for each array, as that array's rows."""
        start = 0
        for array in self._arrays:
            end = start + self.run * array[0].nbytes
            yield record[start:end].view(array.dtype).reshape(self.run, *array.shape[1:]), array
            start = end

    def arena(self, num_bytes: int) -> Bytes:
        """Any memory: the pool is in the same."""
        return np.empty(num_bytes, np.uint8)

    def release(self, slot: int) -> None:
        """NumPy's memory stays until its array goes."""


class JoinedRuns:
    """Runs of several pools, one behind the other."""

    def __init__(self, parts: Sequence[KVRuns]) -> None:
        self.run = parts[0].run
        self.run_bytes = sum(part.run_bytes for part in parts)
        self.layout = "; ".join(part.layout for part in parts)
        self._parts = parts

    def read(self, slots: Int32, out: Bytes) -> None:
        """As NativeRuns.read."""
        start = 0
        for part in self._parts:
            part.read(slots, out[start : start + part.run_bytes])
            start += part.run_bytes

    def write(self, slot: int, data: Bytes) -> None:
        """As NativeRuns.write."""
        start = 0
        for part in self._parts:
            part.write(slot, data[start : start + part.run_bytes])
            start += part.run_bytes

    def arena(self, num_bytes: int) -> Bytes:
        """As the first pool's."""
        return self._parts[0].arena(num_bytes)

    def release(self, slot: int) -> None:
        """As NativeRuns.release."""
        for part in self._parts:
            part.release(slot)


def join_runs(parts: Sequence[KVRuns | None]) -> KVRuns | None:
    """One object for all; None if one of them is."""
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        return None
    return known[0] if len(known) == 1 else JoinedRuns(known)


def _pieces(slots: Int32, run: int) -> Iterator[tuple[int, int, Any]]:
    """The parts of a record that lie in one run each, as (start, end, first slot of that run)."""
    firsts = slots - slots % run
    cuts = np.flatnonzero(np.diff(firsts)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(slots)], strict=True):
        yield start, end, int(firsts[start])
