"""The memory of K and V: one KVLayer per layer of the model that attends to its own sequence, `num_slots` tokens each. The
scheduler decides who owns which slot; this file only holds the memory.

The system maps memory when it is first written to, and page faults can take a good part of the time of a prefill
(`benchmarks/kernels.py` measures it). So the pool touches some pages ahead of need when the scheduler is idle:

    slots    | used before | touched when idle | not mapped yet ...
"""

from __future__ import annotations

import time

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
        self.layers: list[KVLayer] = ops.kv_layers(num_kv_layers(config), num_slots, config.num_kv_heads, config.head_dim)
        self._ops = ops
        self._slot_bytes = kv_bytes_per_token(ops, config)
        self._num_ready = 0

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
            self._ops.touch_kv(self.layers, self._num_ready, end)
            self._num_ready = end
        return self._num_ready < wanted


def num_kv_layers(config: ModelConfig) -> int:
    """Layers that keep something of the sequence."""
    return config.num_layers - len(config.cross_layers)


def kv_bytes_per_token(ops: Ops, config: ModelConfig) -> int:
    """Bytes one token takes in all layers."""
    return num_kv_layers(config) * ops.kv_bytes_per_token(config.num_kv_heads, config.head_dim)
