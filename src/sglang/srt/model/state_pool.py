"""The memory of recurrent layers' states: for each of them a few arrays with a slot for each text. The scheduler decides whose slot is
which (scheduler/cache/states.py); this file only holds the memory, as kv_pool.py does for K and V."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import KVLayer, Ops
from sglang.srt.model.kernels.states import StateArrays
from sglang.srt.model.model_config import ModelConfig


class StatePool:
    """`layers`: of the recurrent layers, in their order."""

    def __init__(self, ops: Ops, config: ModelConfig, num_slots: int) -> None:
        shapes = config.recurrent.mixer.state_shapes() if config.recurrent is not None else {}
        self.layers: list[StateArrays] = [
            {name: ops.empty((num_slots, *shape)) for name, shape in shapes.items()}
            for _ in range(sum(config.recurrent_layers))
        ]

    @property
    def as_bytes(self) -> HostStates | None:
        """The pool's memory as bytes; None without recurrent layers, and where it is not this process's memory."""
        if not self.layers or not all(isinstance(array, np.ndarray) for layer in self.layers for array in layer.values()):
            return None
        return HostStates(self.layers)


class HostStates:
    """forward_batch.StateBytes of arrays in a host's memory: those of all layers, one behind the other."""

    def __init__(self, layers: Sequence[StateArrays]) -> None:
        arrays = [array for layer in layers for array in layer.values()]
        self._arrays: list[npt.NDArray[np.uint8]] = [array.reshape(len(array), -1).view(np.uint8) for array in arrays]
        self.num_bytes = sum(array.shape[1] for array in self._arrays)
        shapes = ", ".join(f"{name} {list(array.shape[1:])} {array.dtype}" for name, array in layers[0].items())
        self.layout = f"states 1: {len(layers)} layers of {shapes}"

    def read(self, slot: int, start: int, out: npt.NDArray[np.uint8]) -> None:
        """As StateBytes.read."""
        out[max(self.num_bytes - start, 0) :] = 0
        for part, at in self._parts(slot, start, len(out)):
            out[at : at + len(part)] = part

    def write(self, slot: int, start: int, data: npt.NDArray[np.uint8]) -> None:
        """As StateBytes.write."""
        for part, at in self._parts(slot, start, len(data)):
            part[...] = data[at : at + len(part)]

    def _parts(self, slot: int, start: int, length: int) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        """The pieces of bytes [start, start + length), and where in it each begins."""
        at = -start
        for array in self._arrays:
            size = array.shape[1]
            first, last = max(-at, 0), min(length - at, size)
            if first < last:
                yield array[slot, first:last], at + first
            at += size


def state_bytes(config: ModelConfig) -> int:
    """Bytes that a text takes in all layers; 0 for models that have K and V alone."""
    if config.recurrent is None:
        return 0
    values = sum(math.prod(shape) for shape in config.recurrent.mixer.state_shapes().values())
    return 4 * values * sum(config.recurrent.layers)


def layer_memories(config: ModelConfig, kv: Sequence[KVLayer], states: Sequence[StateArrays]) -> list[Any]:
    """What each layer keeps of texts, in the order of layers: its K and V, its states, a pair of both, or nothing (None)."""
    if not any(config.recurrent_layers):
        return list(kv)
    of_kv, of_states = iter(kv), iter(states)
    kept = [
        [next(each) for each, has in ((of_kv, config.attends(i)), (of_states, recurrent)) if has]
        for i, recurrent in enumerate(config.recurrent_layers)
    ]
    return [each[0] if len(each) == 1 else tuple(each) or None for each in kept]
