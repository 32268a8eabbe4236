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
    """Reads step.attn_in. `local`: the layer sees only the last `sliding_window` positions. Without `keeps_kv` it reads the K and V
    of another layer and makes none; with `key_is_value` v is k before its norm."""

    def __init__(
        self,
        ops: Ops,
        source: WeightSource,
        prefix: str,
        config: ModelConfig,
        rope: Rope,
        local: bool,
        readers: Readers,
        *,
        keeps_kv: bool = True,
        key_is_value: bool = False,
    ) -> None:
        self.ops = ops
        self.rope = rope
        self.num_heads = config.num_heads
        self.q_scale = config.query_scale if config.query_scale is not None else config.head_dim**-0.5
        self.window = config.sliding_window if local else 0
        self.soft_cap = config.attn_soft_cap
        self.eps = config.norm_eps
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.keeps_kv = keeps_kv
        self.q_size, self.width = q_size, q_size + (2 * kv_size if keeps_kv else 0)
        outputs = {f"{prefix}.q_proj": q_size}
        if keeps_kv:
            outputs[f"{prefix}.k_proj"] = kv_size
            if not key_is_value:
                outputs[f"{prefix}.v_proj"] = kv_size
        self.value_norm = ValueNorm(ops, config, key_is_value) if keeps_kv and config.value_norm else None
        self.qkv = Linear(ops, source, outputs, config.hidden_size, config.attention_bias)
        self.output = Linear(ops, source, {f"{prefix}.o_proj": config.hidden_size}, q_size, config.output_bias)
        self.sinks: Array | None = ops.array(source.vector(f"{prefix}.sinks")) if config.attention_sinks else None
        self.head_norms: tuple[Array | None, Array | None] = (None, None)
        self.norm_last = config.qk_norm == "rotated"
        self.wide_norm = WideNorm(ops, source, prefix, config) if config.qk_norm in ("whole", "layer") else None
        if config.qk_norm in ("head", "rotated"):
            q_norm = ops.array(source.vector(f"{prefix}.q_norm.weight"))
            self.head_norms = (q_norm, ops.array(source.vector(f"{prefix}.k_norm.weight")) if keeps_kv else q_norm)
        self.gate: Linear | None = None
        if config.output_gate:
            self.gate = Linear(ops, source, {f"{prefix}.q_gate": q_size}, config.hidden_size, config.attention_bias)
            readers.attn_in.extend(self.gate.weights)
            readers.sites.append(self.gate.site)
        readers.attn_in.extend(self.qkv.weights)
        readers.attn_out.extend(self.output.weights)
        readers.sites += (self.qkv.site, self.output.site)

    def __call__(self, step: StepBuffers, kv: KVLayer, out: Array) -> None:
        qkv = step.qkv[:, : self.width]
        self.qkv(step.attn_in, qkv, step.rows, step.adapters)
        if self.wide_norm is not None:
            self.wide_norm(qkv, step.rows)
        if self.value_norm is not None:
            self.value_norm(qkv, step.rows)
        rope, positions = self.rope.of_step(step)
        self.ops.rope_store(
            qkv,
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
            q_only=not self.keeps_kv,
        )
        meta = step.local_meta if self.window else step.meta
        attn_out = step.attn_out[self.q_size]
        gated = step.gated if self.gate is not None else None
        self.ops.attention(
            qkv,
            kv,
            attn_out if gated is None else gated.found,
            meta,
            num_heads=self.num_heads,
            window=self.window,
            soft_cap=self.soft_cap,
            sinks=self.sinks,
        )
        if self.gate is not None and gated is not None:
            self.gate(step.attn_in, gated.gate, step.rows, step.adapters)
            self.ops.sigmoid_gate(gated.found, gated.gate, attn_out, step.rows)
        self.output(attn_out, out, step.rows, step.adapters)


class ValueNorm:
    """RMS over each head of v, without weights. With `of_key` v is made from k, before that has its norm."""

    def __init__(self, ops: Ops, config: ModelConfig, of_key: bool) -> None:
        self.ops, self.eps = ops, config.norm_eps
        self.ones = ops.array(np.ones(config.head_dim, np.float32))
        size = config.head_dim
        starts = [(config.num_heads + config.num_kv_heads + h) * size for h in range(config.num_kv_heads)]
        shift = config.num_kv_heads * size if of_key else 0
        self.columns = [(slice(at - shift, at - shift + size), slice(at, at + size)) for at in starts]

    def __call__(self, qkv: Array, rows: Array) -> None:
        for source, out in self.columns:
            self.ops.rms_norm(qkv[:, source], self.ones, qkv[:, out], rows, eps=self.eps)


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
