"""The memory of K and V: one KVLayer per layer of the model, `num_slots` tokens each. Who owns which slot is decided by the
scheduler; here they are only memory."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import KVLayer, Ops
from sglang.srt.model.model_config import ModelConfig


class KVPool:
    """`num_slots` is a multiple of ops.slot_run."""

    def __init__(self, ops: Ops, config: ModelConfig, num_slots: int) -> None:
        self.num_slots = num_slots
        self.layers: list[KVLayer] = ops.kv_layers(config.num_layers, num_slots, config.num_kv_heads, config.head_dim)


def kv_bytes_per_token(ops: Ops, config: ModelConfig) -> int:
    """Bytes one token takes in all layers."""
    return config.num_layers * ops.kv_bytes_per_token(config.num_kv_heads, config.head_dim)
