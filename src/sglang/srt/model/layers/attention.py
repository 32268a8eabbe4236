"""Self-attention with grouped heads: projections, rotation, and the paged attention op."""

from __future__ import annotations

import numpy as np

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
        self.eps = config.norm_eps
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        outputs = {f"{prefix}.q_proj": q_size, f"{prefix}.k_proj": kv_size, f"{prefix}.v_proj": kv_size}
        self.qkv = Linear(ops, source, outputs, config.hidden_size, config.attention_bias)
        self.output = Linear(ops, source, {f"{prefix}.o_proj": config.hidden_size}, q_size, config.output_bias)
        self.sinks: Array | None = ops.array(source.vector(f"{prefix}.sinks")) if config.attention_sinks else None
        self.head_norms: tuple[Array | None, Array | None] = (None, None)
        self.norm_last = config.qk_norm == "rotated"
        self.wide_norm = WideNorm(ops, source, prefix, config) if config.qk_norm in ("whole", "layer") else None
        if config.qk_norm in ("head", "rotated"):
            q_norm, k_norm = (ops.array(source.vector(f"{prefix}.{name}_norm.weight")) for name in "qk")
            self.head_norms = (q_norm, k_norm)
        readers.attn_in.extend(self.qkv.weights)
        readers.attn_out.extend(self.output.weights)
        readers.sites += (self.qkv.site, self.output.site)

    def __call__(self, step: StepBuffers, kv: KVLayer, out: Array) -> None:
        self.qkv(step.attn_in, step.qkv, step.rows, step.adapters)
        if self.wide_norm is not None:
            self.wide_norm(step.qkv, step.rows)
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
            q_norm=self.head_norms[0],
            k_norm=self.head_norms[1],
            eps=self.eps,
            norm_last=self.norm_last,
            q_growth=rope.q_growth,
        )
        meta = step.local_meta if self.window else step.meta
        self.ops.attention(
            step.qkv,
            kv,
            step.attn_out,
            meta,
            num_heads=self.num_heads,
            window=self.window,
            soft_cap=self.soft_cap,
            sinks=self.sinks,
        )
        self.output(step.attn_out, out, step.rows, step.adapters)


class WideNorm:
    """Norms of q and k before rotation, in place, where `rope_store` has none of the kind: RMS over all heads together, or a layer
    norm over each head with its own weights."""

    def __init__(self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig) -> None:
        self.ops, self.eps, self.head_dim = ops, config.norm_eps, config.head_dim
        self.kind = config.qk_norm
        self.parts: list[tuple[int, Array]] = []
        start = 0
        for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            weight = source.vector(f"{prefix}.{name}_norm.weight")
            for part in weight.reshape(1 if self.kind == "whole" else heads, -1):
                self.parts.append((start, ops.array(part)))
                start += len(part)
        self.no_bias = ops.array(np.zeros(config.head_dim, np.float32))

    def __call__(self, qkv: Array, rows: Array) -> None:
        for start, weight in self.parts:
            columns = qkv[:, start : start + len(weight)]
            if self.kind == "whole":
                self.ops.rms_norm(columns, weight, columns, rows, eps=self.eps)
            else:
                self.ops.layer_norm(columns, weight, self.no_bias, columns, rows, eps=self.eps)
