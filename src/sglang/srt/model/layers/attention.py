"""Self-attention with grouped heads: projections, rotation, and the paged attention op."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import Array, KVLayer, Ops
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.rope import Rope
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig


class Attention:
    """Reads step.attn_in. `local`: the layer sees only the last `sliding_window` positions."""

    def __init__(
        self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, rope: Rope, local: bool, readers: Readers
    ) -> None:
        self.ops = ops
        self.rope = rope
        self.num_heads = config.num_heads
        self.q_scale = config.query_scale if config.query_scale is not None else config.head_dim**-0.5
        self.window = config.sliding_window if local else 0
        self.soft_cap = config.attn_soft_cap
        self.eps = config.rms_norm_eps
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        outputs = {f"{prefix}.q_proj": q_size, f"{prefix}.k_proj": kv_size, f"{prefix}.v_proj": kv_size}
        self.qkv = Linear(ops, source, outputs, config.hidden_size, config.attention_bias)
        self.output = Linear(ops, source, {f"{prefix}.o_proj": config.hidden_size}, q_size, config.output_bias)
        self.q_norm = ops.array(source.vector(f"{prefix}.q_norm.weight")) if config.qk_norm else None
        self.k_norm = ops.array(source.vector(f"{prefix}.k_norm.weight")) if config.qk_norm else None
        readers.attn_in.extend(self.qkv.weights)
        readers.attn_out.extend(self.output.weights)

    def __call__(self, step: StepBuffers, kv: KVLayer, out: Array) -> None:
        self.qkv(step.attn_in, step.qkv, step.rows)
        rope, positions = self.rope.of_step(step)
        self.ops.rope_store(
            step.qkv,
            kv,
            positions,
            step.slots,
            step.rows,
            num_heads=self.num_heads,
            cos=rope.cos,
            sin=rope.sin,
            q_scale=self.q_scale,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            eps=self.eps,
        )
        self.ops.attention(
            step.qkv, kv, step.attn_out, step.meta, num_heads=self.num_heads, window=self.window, soft_cap=self.soft_cap
        )
        self.output(step.attn_out, out, step.rows)
