"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the pool keeps one row for all heads, of what rotates of K and of the
latent that the rest of K, and V, are made of. The matrices that would make them are applied to q and to the result instead:

    score_h = q_rot . k_rot + q_nope . (Wk_h latent)  =  [q_rot, Wk_h^T q_nope] . [k_rot, latent]
    out_h   = sum p (Wv_h latent)                     =  Wv_h (sum p latent)

so that to the attention op this is one KV head of width rope_dim + rank. It keeps the row twice, as K and as V.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import Array, KVLayer, Ops
from sglang.srt.model.layers.buffers import Readers, StepBuffers
from sglang.srt.model.layers.linear import Linear
from sglang.srt.model.layers.rope import Rope
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import LatentConfig, ModelConfig
from sglang.srt.model.quant.formats import HostTensor, dense

Float32 = npt.NDArray[np.float32]

_FORMS = {"float32": "f32", "f32": "f32", "bfloat16": "bf16", "bf16": "bf16"}
"""of the matrices of single heads by the dtype of the model; the others have them in float16"""


class Renamed:
    """A source in which rows of one matrix have another order."""

    def __init__(self, source: WeightSource, name: str, order: npt.NDArray[np.intp]) -> None:
        self._source, self._name, self._order = source, name, order

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        tensor = self._source.tensor(name, shape)
        return tensor.take_rows(self._order) if name == f"{self._name}.weight" else tensor

    def vector(self, name: str) -> Float32:
        values = self._source.vector(name)
        return np.ascontiguousarray(values[self._order]) if name == f"{self._name}.bias" else values


class LatentAttention:
    """Reads step.attn_in."""

    def __init__(self, ops: Ops, source: WeightSource, prefix: str, config: ModelConfig, rope: Rope, readers: Readers) -> None:
        assert config.latent is not None
        latent, hidden, heads = config.latent, config.hidden_size, config.num_heads
        self.ops, self.rope, self.latent, self.num_heads, self.width = ops, rope, latent, heads, config.head_dim
        self.q_scale = config.query_scale if config.query_scale is not None else latent.q_dim**-0.5
        q_rows, bias = heads * latent.q_dim, config.attention_bias
        self.q_down: Linear | None = None
        if latent.q_rank:
            self.q_down = Linear(ops, source, {f"{prefix}.q_a_proj": latent.q_rank}, hidden, bias)
            self.q_norm = ops.array(source.vector(f"{prefix}.q_a_layernorm.weight"))
            self.q_up = Linear(ops, source, {f"{prefix}.q_b_proj": q_rows}, latent.q_rank)
            readers.attn_in.extend(self.q_down.weights)
            readers.latent_q_in.extend(self.q_up.weights)
        else:
            self.q_up = Linear(ops, source, {f"{prefix}.q_proj": q_rows}, hidden)
            readers.attn_in.extend(self.q_up.weights)
        turned = _rotating(latent)
        order = np.concatenate([latent.rank + turned, np.arange(latent.rank)])
        name = f"{prefix}.kv_a_proj_with_mqa"
        self.kv_down = Linear(ops, Renamed(source, name, order), {name: config.head_dim}, hidden, bias)
        self.kv_norm = ops.array(source.vector(f"{prefix}.kv_a_layernorm.weight"))
        keys, values = _by_head(source, prefix, latent, heads)
        form = _FORMS.get(config.dtype, "f16")
        self.absorb = ops.pack_experts(
            heads, lambda h: [dense(f"{prefix}.k_b.{h}", _absorbing(keys[h], turned, latent), form)], gated=False
        )
        self.expand = ops.pack_experts(
            heads, lambda h: [dense(f"{prefix}.v_b.{h}", _expanding(values[h], latent), form)], gated=False
        )
        self.output = Linear(ops, source, {f"{prefix}.o_proj": hidden}, heads * latent.v_dim, config.output_bias)
        readers.attn_in.extend(self.kv_down.weights)
        readers.latent_q.append(self.absorb)
        readers.attn_out.append(self.expand)
        readers.latent_out.extend(self.output.weights)

    def __call__(self, step: StepBuffers, kv: KVLayer, out: Array) -> None:
        ops, b, rows = self.ops, step.latent, step.rows
        assert b is not None
        if self.q_down is None:
            self.q_up(step.attn_in, b.q, rows)
        else:
            assert b.q_low is not None and b.q_low_in is not None
            self.q_down(step.attn_in, b.q_low, rows)
            ops.rms_norm(b.q_low, self.q_norm, b.q_low_in, rows, eps=self.latent.norm_eps)
            self.q_up(b.q_low_in, b.q, rows)
        ops.store(b.q, b.q_in, rows)
        at, width = self.num_heads * self.width, self.width
        ops.heads_linear(self.absorb, b.q_in, step.qkv[:, :at], rows)
        k, v = step.qkv[:, at : at + width], step.qkv[:, at + width : at + 2 * width]
        self.kv_down(step.attn_in, k, rows)
        below = self.latent.rope_dim
        ops.rms_norm(k[:, below:], self.kv_norm, v[:, below:], rows, eps=self.latent.norm_eps)
        ops.overlay(k[:, below:], v[:, below:], step.every, rows)
        rope, positions = self.rope.of_step(step)
        ops.rope_store(
            step.qkv,
            kv,
            positions,
            step.slots,
            rows,
            num_heads=self.num_heads,
            cos=rope.cos,
            sin=rope.sin,
            q_scale=self.q_scale,
        )
        attn_out = step.attn_out[at]
        ops.attention(step.qkv, kv, attn_out, step.meta, num_heads=self.num_heads)
        ops.heads_linear(self.expand, attn_out, b.v, rows)
        ops.store(b.v, b.v_in, rows)
        self.output(b.v_in, out, rows)


def _rotating(latent: LatentConfig) -> npt.NDArray[np.intp]:
    """For each element of what rotates, in half-split order, where it is stored."""
    order = np.arange(latent.rope_dim)
    return order.reshape(-1, 2).T.ravel() if latent.interleaved else order


def _by_head(source: WeightSource, prefix: str, latent: LatentConfig, heads: int) -> tuple[Float32, Float32]:
    """K's matrices [heads, nope_dim, rank] and V's [heads, v_dim, rank]."""
    if latent.is_split:
        keys, values = (source.vector(f"{prefix}.{name}_b_proj.weight") for name in "kv")
        return keys.transpose(0, 2, 1), values
    both = source.vector(f"{prefix}.kv_b_proj.weight").reshape(heads, latent.nope_dim + latent.v_dim, latent.rank)
    return both[:, : latent.nope_dim], both[:, latent.nope_dim :]


def _absorbing(key: Float32, turned: npt.NDArray[np.intp], latent: LatentConfig) -> Float32:
    """From a head of q as it is stored, [nope, rope], to [rope in half-split order, rank]."""
    matrix = np.zeros((latent.rope_dim + latent.rank, latent.q_dim), np.float32)
    matrix[np.arange(latent.rope_dim), latent.nope_dim + turned] = 1
    matrix[latent.rope_dim :, : latent.nope_dim] = key.T
    return matrix


def _expanding(value: Float32, latent: LatentConfig) -> Float32:
    """From a head's sum of rows to its V: what rotates has no part in it."""
    return np.concatenate([np.zeros((latent.v_dim, latent.rope_dim), np.float32), value], axis=1)
