"""The memory of K and V: one KVLayer per layer of the model that attends to its own sequence, `num_slots` tokens each. Who owns which slot is decided by the
scheduler; here they are only memory."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import KVLayer, Ops
from sglang.srt.model.model_config import ModelConfig


class KVPool:
    """`num_slots` is a multiple of ops.slot_run."""

    def __init__(self, ops: Ops, config: ModelConfig, num_slots: int) -> None:
        self.num_slots = num_slots
        self.layers: list[KVLayer] = ops.kv_layers(num_kv_layers(config), num_slots, config.num_kv_heads, config.head_dim)


def num_kv_layers(config: ModelConfig) -> int:
    """Layers that keep something of the sequence."""
    return config.num_layers - len(config.cross_layers)


def kv_bytes_per_token(ops: Ops, config: ModelConfig) -> int:
    """Bytes one token takes in all layers."""
    return num_kv_layers(config) * ops.kv_bytes_per_token(config.num_kv_heads, config.head_dim)
