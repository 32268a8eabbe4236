"""The memory of K and V: one KVLayer per layer of the model that attends to its own sequence (the same one for layers that share
K and V), `num_slots` tokens each. Layers of one shape lie together. The scheduler decides who owns which slot; this file only holds the memory.

The system maps memory when it is first written to, and page faults can take a good part of the time of a prefill
(`benchmarks/kernels.py` measures it). So the pool touches some pages ahead of need when the scheduler is idle:

    slots    | used before | touched when idle | not mapped yet ...

Memory that was used once stays, whatever the prefix cache holds, until the cache is flushed.
"""

from __future__ import annotations

import time

from sglang.srt.forward_batch import KVRuns
from sglang.srt.model.kernels.kv_runs import join_runs
from sglang.srt.model.kernels.ops import KVLayer, Ops
from sglang.srt.model.model_config import ModelConfig

LEAST_AHEAD, MOST_AHEAD = 16 << 20, 128 << 20
"""Bytes that are ready besides what was in use once: as many again, within these."""
PIECE = 2 << 20
GET_READY_SECONDS = 0.003


class KVPool:
    """`num_slots` is a multiple of ops.slot_run."""

    def __init__(self, ops: Ops, config: ModelConfig, num_slots: int) -> None:
        self.num_slots = num_slots
        self._ops = ops
        self._groups = [(owners, ops.kv_layers(len(owners), num_slots, *shape)) for shape, owners in kv_shapes(config).items()]
        own = {owner: layer for owners, layers in self._groups for owner, layer in zip(owners, layers, strict=True)}
        readers = [i for i in range(config.num_layers) if config.attends(i)]
        self.layers: list[KVLayer] = [own[config.kv_owners[i] if config.kv_owners else i] for i in readers]
        self._slot_bytes = kv_bytes_per_token(ops, config)
        self._num_ready = 0

    @property
    def runs(self) -> KVRuns | None:
        """The pool's memory as bytes; None where it is not this process's memory."""
        return join_runs([self._ops.kv_runs(layers) for _, layers in self._groups])

    def get_ready(self, num_used: int) -> bool:
        """Has memory brought for a few milliseconds, knowing that slots before `num_used` were in use. Whether there is more to
        do."""
        ahead = min(max(num_used * self._slot_bytes, LEAST_AHEAD), MOST_AHEAD)
        wanted = min(num_used + ahead // self._slot_bytes, self.num_slots)
        piece = max(PIECE // self._slot_bytes, 1)
        self._num_ready = max(self._num_ready, num_used)
        until = time.perf_counter() + GET_READY_SECONDS
        while self._num_ready < wanted and time.perf_counter() < until:
            end = min(self._num_ready + piece, wanted)
            for _, layers in self._groups:
                self._ops.touch_kv(layers, self._num_ready, end)
            self._num_ready = end
        return self._num_ready < wanted

    def release(self) -> None:
        """No slot holds anything that is needed: gives memory back, but for what is kept ready."""
        kept = LEAST_AHEAD // self._slot_bytes
        if (runs := self.runs) is not None:
            runs.release(kept)
            self._num_ready = min(self._num_ready, kept)


def kv_shapes(config: ModelConfig) -> dict[tuple[int, int], list[int]]:
    """(num_kv_heads, head_dim) -> the layers that keep such K and V."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for i in range(config.num_layers):
        if config.attends(i) and config.keeps_kv(i):
            layer = config.of_layer(i)
            shapes.setdefault((layer.num_kv_heads, layer.head_dim), []).append(i)
    return shapes


def kv_bytes_per_token(ops: Ops, config: ModelConfig) -> int:
    """Bytes one token takes in all layers."""
    return sum(len(owners) * ops.kv_bytes_per_token(*shape) for shape, owners in kv_shapes(config).items())
