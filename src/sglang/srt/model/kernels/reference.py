"""Every op in plain NumPy and float32: the documentation in code, the fallback where C++ cannot run, and the oracle of tests.

Weights are dequantized when packed. Results do not depend on the batch, as everywhere (D6), which with a BLAS underneath takes
two devices. Linear layers multiply fixed tiles of TILE rows, padded with zeros: a call has the same shape whatever the number
of rows, and `pack` checks that the BLAS at hand treats all rows of a tile alike. Attention tiles start at multiples of TILE
positions of the *sequence*, so a position always sits in the same row of a call of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels import reference_experts
from sglang.srt.model.kernels.host import HostArrays
from sglang.srt.model.kernels.kv_runs import ReferenceRuns
from sglang.srt.model.kernels.low_rank import LowRank, ReferenceAdapterBank, RowAdapters
from sglang.srt.model.kernels.ops import Activator, AttentionMeta, ExpertGate, Gate, KernelLimits, Routes, Routing
from sglang.srt.model.kernels.reference_experts import ReferenceBank
from sglang.srt.model.kernels.reference_kv import ReferenceKV
from sglang.srt.model.kernels.reference_linear import (
    TILE,
    Float,
    Int,
    ReferenceActivation,
    ReferenceWeight,
    apply_gate,
    matmul,
)
from sglang.srt.model.kernels.reference_states import ReferenceStates
from sglang.srt.model.quant.formats import HostTensor

# An op set only ever meets its own objects, which types cannot say of a Protocol's arguments: hence Any.
Weight = Any  # a ReferenceWeight
Activation = Any  # a ReferenceActivation
KVLayer = Any  # a ReferenceKV


class ReferenceOps(ReferenceStates, HostArrays):
    """The NumPy op set. See ops.Ops for what each op does."""

    name = "reference numpy"
    slot_run = 16  # any slot would do; 16 keeps slots the same as with the C++ kernels
    deterministic = True
    limits = KernelLimits()
    kv_form = "float32"

    def __init__(self, kv_form: str = kv_form) -> None:
        """`kv_form`: how K and V are kept, one of reference_kv's."""
        self.kv_form = kv_form

    # --- memory and weights ---------------------------------------------------------------------------------------------------
    def array(self, host: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(host)

    def pack(self, parts: Sequence[HostTensor]) -> ReferenceWeight:
        return ReferenceWeight(np.concatenate([p.dequantize() for p in parts]))

    def can_stack(self, parts: Sequence[HostTensor]) -> bool:
        return True

    def pack_gated(self, gate: HostTensor, up: HostTensor) -> ReferenceWeight:
        return self.pack([gate, up])

    def pack_experts(self, num_experts: int, read: Callable[[int], Sequence[HostTensor]], *, gated: bool) -> ReferenceBank:
        return ReferenceBank(num_experts, read)

    def adapter_bank(
        self, num_slots: int, max_rank: int, in_features: int, widths: Sequence[int], *, name: str = ""
    ) -> ReferenceAdapterBank:
        return ReferenceAdapterBank(num_slots, max_rank, in_features, widths)

    def pack_adapter(self, bank: Any, parts: Sequence[LowRank | None]) -> Any:
        return bank.pack(parts)

    def place_adapter(self, bank: Any, slot: int, packed: Any) -> None:
        bank.place(slot, packed)

    def activation(self, max_rows: int, readers: Sequence[Weight], num_heads: int = 1) -> ReferenceActivation:
        return ReferenceActivation(max_rows, readers[0].in_features * num_heads)

    def kv_layers(self, num_layers: int, num_slots: int, num_kv_heads: int, head_dim: int) -> list[KVLayer]:
        return [ReferenceKV(num_slots, num_kv_heads, head_dim, self.kv_form) for _ in range(num_layers)]

    def kv_runs(self, layers: Sequence[Any]) -> ReferenceRuns:
        return ReferenceRuns([array for layer in layers for array in layer.arrays], self.slot_run)

    def packed_bits(self, format_name: str) -> float:
        return 32.0

    def kv_bytes_per_token(self, num_kv_heads: int, head_dim: int) -> int:
        return 2 * num_kv_heads * (head_dim * 4 if self.kv_form == "float32" else head_dim + 4)

    # --- the forward pass -----------------------------------------------------------------------------------------------------
    def take_sampled(self, ids: Int, previous: Int, sampled: Int, rows: Int) -> None:
        taken = np.flatnonzero(previous[: int(rows[0])] >= 0)
        ids[taken] = np.maximum(sampled[previous[taken]], 0)

    def embedding(self, weight: Weight, ids: Int, out: Float, rows: Int, *, scale: float = 1.0) -> None:
        n = int(rows[0])
        np.multiply(weight.values[ids[:n]], np.float32(scale), out=out[:n])

    def rms_norm(
        self,
        x: Float,
        weight: Float,
        out: Float | Activation,
        rows: Int,
        *,
        eps: float,
        delta: Float | None = None,
        row_idx: Int | None = None,
    ) -> None:
        n = int(rows[0])
        which: Any = slice(n) if row_idx is None else row_idx[:n]
        if delta is not None:
            x[which] += delta[which]
        _data(out)[:n] = _normalize(x[which], weight, eps)

    def linear(self, weight: Weight, x: Activation, out: Float, rows: Int, *, bias: Float | None = None) -> None:
        n = int(rows[0])
        result = matmul(weight, x.data[:n])
        out[:n, : weight.out_features] = result if bias is None else result + bias

    def linear_blocks(
        self, weight: Weight, x: Activation, out: Float, rows: Int, whole: Int, num_blocks: Int, blocks: Int
    ) -> None:
        n, first = int(rows[0]), min(int(whole[0]), int(rows[0]))
        result = matmul(weight, x.data[:n])
        out[:first, : weight.out_features] = result[:first]
        for b in blocks[: int(num_blocks[0])].tolist():
            columns = slice(16 * b, min(16 * b + 16, weight.out_features))
            out[first:n, columns] = result[first:, columns]

    def gated_linear(self, weight: Weight, x: Activation, out: Activation, rows: Int, *, gate: Gate) -> None:
        n = int(rows[0])
        both = matmul(weight, x.data[:n])
        half = weight.out_features // 2
        out.data[:n] = apply_gate(both[:, :half], gate) * both[:, half:]

    def route(
        self, logits: Float, routes: Routes, rows: Int, *, how: Routing, bias: Float | None = None, scales: Float | None = None
    ) -> None:
        reference_experts.route(logits, routes, int(rows[0]), how, bias, scales)

    def gated_experts(
        self,
        bank: Any,
        x: Activation,
        out: Activation,
        routes: Routes,
        rows: Int,
        *,
        gate: ExpertGate,
        bias: Float | None = None,
    ) -> None:
        reference_experts.gated_experts(bank, x, out, routes, int(rows[0]), gate, bias)

    def experts_linear(
        self, bank: Any, x: Activation, out: Float, routes: Routes, rows: Int, *, bias: Float | None = None
    ) -> None:
        reference_experts.experts_linear(bank, x, out, routes, int(rows[0]), bias)

    def heads_linear(self, bank: Any, x: Activation, out: Float, rows: Int) -> None:
        reference_experts.heads_linear(bank, x, out, int(rows[0]))

    def low_rank(self, bank: Any, x: Activation, out: Float, adapters: RowAdapters) -> None:
        bank.add(x.data, out, adapters)

    def gate(self, gate: Float, up: Float, out: Float | Activation, rows: Int, *, gate_fn: Gate) -> None:
        n = int(rows[0])
        _data(out)[:n] = apply_gate(gate[:n], gate_fn) * up[:n]

    def store(self, x: Float, out: Activation, rows: Int) -> None:
        n = int(rows[0])
        out.data[:n] = x[:n]

    def rope_store(
        self,
        qkv: Float,
        kv: KVLayer,
        positions: Int,
        slots: Int,
        rows: Int,
        *,
        num_heads: int,
        cos: Float,
        sin: Float,
        q_scale: float,
        q_norm: Float | None = None,
        k_norm: Float | None = None,
        eps: float = 0.0,
        norm_last: bool = False,
        q_growth: Float | None = None,
        q_only: bool = False,
    ) -> None:
        n, head_dim, num_kv = int(rows[0]), kv.head_dim, 0 if q_only else kv.num_kv_heads
        heads = qkv[:n].reshape(n, num_heads + 2 * num_kv, head_dim)
        q, k, v = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv], heads[:, num_heads + num_kv :]
        at = positions[:n]
        for is_last in (False, True):
            if q_norm is not None and k_norm is not None and norm_last == is_last:
                q[:], k = _normalize(q, q_norm, eps), _normalize(k, k_norm, eps)
            if not is_last:
                q[:], k = _rotate(q, cos[at], sin[at]), _rotate(k, cos[at], sin[at])
        q *= np.float32(q_scale) if q_growth is None else np.float32(q_scale) * q_growth[at][:, None, None]
        qkv[:n] = heads.reshape(n, -1)  # `heads` is a copy where qkv is a column range
        if not q_only:
            kv.put(slots[:n], k, v)

    def attention(
        self,
        qkv: Float,
        kv: KVLayer,
        out: Activation,
        meta: AttentionMeta,
        *,
        num_heads: int,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: Float | None = None,
    ) -> None:
        for r in range(int(meta.num_reqs[0])):
            start, length, seq_len = int(meta.q_start[r]), int(meta.q_len[r]), int(meta.seq_lens[r])
            first = seq_len - length  # position of the first new row
            begin = max(0, first // TILE * TILE - window + 1) // TILE * TILE if window else 0
            slots = meta.req_to_token[int(meta.req_pool_idx[r]), begin:seq_len]
            k, v = kv.take(slots)
            for tile in range(first // TILE * TILE, seq_len, TILE):
                low, high = max(tile, first), min(tile + TILE, seq_len)
                rows = slice(start + low - first, start + high - first)
                q = np.zeros((TILE, num_heads, kv.head_dim), np.float32)
                q[low - tile : high - tile] = qkv[rows, : num_heads * kv.head_dim].reshape(high - low, num_heads, -1)
                key_low = max(0, tile - window + 1) // TILE * TILE if window else 0
                ends = np.arange(tile + 1, tile + TILE + 1)
                if meta.row_ends is not None:
                    ends[low - tile : high - tile] = np.clip(meta.row_ends[rows], ends[low - tile : high - tile], seq_len)
                key_high = -(-int(ends.max()) // TILE) * TILE
                keys = slice(key_low - begin, key_high - begin)
                result = _attend(q, k[keys], v[keys], tile, key_low, ends, window, soft_cap, sinks)
                out.data[rows] = result[low - tile : high - tile].reshape(high - low, -1)

    def soft_cap(self, x: Float, rows: Int, *, cap: float) -> None:
        n = int(rows[0])
        x[:n] = np.float32(cap) * np.tanh(x[:n] / np.float32(cap))

    # --- vision-language models -----------------------------------------------------------------------------------------------
    def scale(self, x: Float, rows: Int, *, by: float) -> None:
        x[: int(rows[0])] *= np.float32(by)

    def match_rms(self, x: Float, like: Float, rows: Int) -> None:
        n = int(rows[0])
        own, other = (np.square(part[:n]).mean(axis=-1, keepdims=True, dtype=np.float32) for part in (x, like))
        x[:n] *= np.sqrt(other) / np.sqrt(np.maximum(own, np.float32(1e-5)))

    def sparsify(self, x: Float, rows: Int, *, deviations: float) -> None:
        part = x[: int(rows[0])]
        mean = part.mean(axis=-1, keepdims=True, dtype=np.float32)
        deviation = np.sqrt(np.square(part - mean).mean(axis=-1, keepdims=True, dtype=np.float32))
        part[:] = np.maximum(part - mean - np.float32(deviations) * deviation, 0)

    def overlay(self, x: Float, source: Float, index: Int, rows: Int, *, add: bool = False) -> None:
        n = int(rows[0])
        taken = np.flatnonzero(index[:n] >= 0)
        if add:
            x[taken] += source[index[taken]]
        else:
            x[taken] = source[index[taken]]

    def select_rope(self, cos: Float, sin: Float, positions: Int, axes: Int, out_cos: Float, out_sin: Float, rows: Int) -> None:
        n = int(rows[0])
        at = positions[axes, :n].T  # [n, d]
        pairs = np.arange(len(axes))
        out_cos[:n], out_sin[:n] = cos[at, pairs], sin[at, pairs]

    def layer_norm(
        self,
        x: Float,
        weight: Float,
        bias: Float,
        out: Float | Activation,
        rows: Int,
        *,
        eps: float,
        delta: Float | None = None,
    ) -> None:
        n = int(rows[0])
        if delta is not None:
            x[:n] += delta[:n]
        centred = x[:n] - x[:n].mean(axis=-1, keepdims=True, dtype=np.float32)
        variance = np.square(centred).mean(axis=-1, keepdims=True, dtype=np.float32)
        _data(out)[:n] = centred / np.sqrt(variance + np.float32(eps)) * weight + bias

    def activate(self, x: Float, out: Activation, rows: Int, *, fn: Activator) -> None:
        n = int(rows[0])
        values = x[:n, : out.width]
        if fn == "quick_gelu":
            out.data[:n] = values / (np.float32(1) + np.exp(-np.maximum(np.float32(1.702) * values, np.float32(-80))))
        elif fn == "relu" or fn == "relu2":
            positive = np.maximum(values, np.float32(0))
            out.data[:n] = positive if fn == "relu" else positive * positive
        else:
            out.data[:n] = apply_gate(values, fn)

    def gather_rows(self, x: Float, index: Int, out: Float, rows: Int) -> None:
        n = int(rows[0])
        out[:n, : x.shape[1]] = x[index[:n]]

    def blend_rows(self, x: Float, index: Int, weight: Float, out: Float, rows: Int) -> None:
        n = int(rows[0])
        total = np.zeros((n, x.shape[1]), np.float32)
        for j in range(index.shape[1]):
            total += weight[:n, j, None] * x[index[:n, j]]
        out[:n, : x.shape[1]] = total

    def rotate(self, x: Float, cos: Float, sin: Float, rows: Int, *, num_heads: int, head_dim: int) -> None:
        n = int(rows[0])
        heads = x[:n, : num_heads * head_dim].reshape(n, num_heads, head_dim)
        x[:n, : num_heads * head_dim] = _rotate(heads, cos[:n], sin[:n]).reshape(n, -1)

    def segment_attention(
        self, qkv: Float, starts: Int, out: Float, *, begin: int, end: int, num_heads: int, head_dim: int, scale: float,
        window: int = 0, bias: Float | None = None,
    ) -> None:  # fmt: skip
        for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if high <= begin or low >= end:
                continue
            parts = qkv[low:high, : 3 * num_heads * head_dim].reshape(high - low, 3, num_heads, head_dim)
            k, v = parts[:, 1], parts[:, 2]
            for tile in range(low, high, TILE):
                first, last = max(tile, begin), min(tile + TILE, high, end)
                if first >= last:
                    continue
                q = np.zeros((TILE, num_heads, head_dim), np.float32)
                q[: min(TILE, high - tile)] = parts[tile - low : tile - low + TILE, 0] * np.float32(scale)
                scores = np.einsum("qhd,khd->hqk", q, k, optimize=True)
                at = np.minimum(np.arange(tile, tile + TILE), high - 1)  # rows beyond are not looked at
                away = np.arange(low, high) - at[:, None]  # [queries, keys]
                if bias is not None:
                    reach = bias.shape[1] // 2
                    scores = scores + bias[:num_heads, np.clip(away, -reach, reach) + reach]
                if window:
                    scores = np.where(abs(away) <= window, scores, np.float32(-np.inf))
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                mixed = np.einsum("hqk,khd->qhd", weights, v, optimize=True) / weights.sum(axis=-1).T[:, :, None]
                out[first:last, : num_heads * head_dim] = mixed[first - tile : last - tile].reshape(last - first, -1)

    # --- on logits ------------------------------------------------------------------------------------------------------------
    def adjust(self, x: Float, indptr: Int, ids: Int, scale: Float, bias: Float) -> None:
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        v = x[rows, ids]
        x[rows, ids] = np.where(v > 0, v / scale, v * scale) + bias

    def mask(self, x: Float, row_idx: Int, bits: npt.NDArray[np.uint32]) -> None:
        known = min(x.shape[1], 32 * bits.shape[1])
        allowed = np.unpackbits(bits.astype("<u4", copy=False).view(np.uint8), axis=1, bitorder="little")[:, :known]
        for row, allow in zip(row_idx, allowed, strict=True):
            x[row, :known][allow == 0] = -np.inf
            x[row, known:] = -np.inf

    def argmax(self, x: Float, num_rows: int, out: Int) -> None:
        best = np.argmax(x[:num_rows], axis=1)  # the first NaN if there is one
        values = np.take_along_axis(x[:num_rows], best[:, None], axis=1)[:, 0]
        out[:num_rows] = np.where(np.isnan(values), -1, best)

    def log_sum_exp(self, x: Float, num_rows: int, out: Float) -> None:
        for i in range(num_rows):
            best = x[i].max()
            if np.isfinite(best):
                best += np.log(np.exp(x[i] - best).sum(dtype=np.float64))
            out[i] = best

    def top_k(self, x: Float, num_rows: int, k: int, ids: Int, values: Float) -> None:
        for i in range(num_rows):
            threshold = np.partition(x[i], -k)[-k]
            candidates = np.flatnonzero(x[i] >= threshold)
            if len(candidates) < k:  # the row holds a NaN
                ids[i, :k], values[i, :k] = -1, np.nan
                continue
            ids[i, :k] = candidates[np.argsort(-x[i, candidates], kind="stable")[:k]]
            values[i, :k] = x[i, ids[i, :k]]

    def sample(
        self,
        x: Float,
        num_rows: int,
        temperature: Float,
        top_k: Int,
        top_p: Float,
        min_p: Float,
        uniform: Float,
        out: Int,
    ) -> None:
        for i in range(num_rows):
            if temperature[i] == 0 or np.isnan(x[i]).any() or x[i].max() == -np.inf:
                self.argmax(x[i : i + 1], 1, out[i : i + 1])
                if x[i].max() == -np.inf:
                    out[i] = -1
                continue
            out[i] = _sample_row(
                x[i], float(temperature[i]), int(top_k[i]), float(top_p[i]), float(min_p[i]), float(uniform[i])
            )


def _data(out: Float | ReferenceActivation) -> Float:
    return out.data if isinstance(out, ReferenceActivation) else out


def _normalize(x: Float, weight: Float, eps: float) -> Float:
    mean = np.square(x).mean(axis=-1, keepdims=True, dtype=np.float32)
    result: Float = x / np.sqrt(mean + np.float32(eps)) * weight
    return result


def _rotate(x: Float, cos: Float, sin: Float) -> Float:
    """x: [n, heads, head_dim]; cos, sin: [n, d]. Pairs (j, j + d); the rest stays."""
    d = cos.shape[1]
    cos, sin = cos[:, None], sin[:, None]
    a, b = x[..., :d], x[..., d : 2 * d]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * d :]], axis=-1)


def _attend(
    q: Float,
    k: Float,
    v: Float,
    first: int,
    key_first: int,
    ends: npt.NDArray[Any],
    window: int,
    soft_cap: float,
    sinks: Float | None = None,
) -> Float:
    """Attention of TILE positions from `first` on, which see keys before `ends`, over keys from `key_first` on. q: [TILE, num_heads, head_dim]; k, v:
    [num_keys, num_kv_heads, head_dim]. Keys that a row must not see have weight 0, so what they hold does not matter."""
    num_heads, head_dim = q.shape[1:]
    num_keys, num_kv = k.shape[:2]
    group = num_heads // num_kv
    grouped = q.reshape(TILE, num_kv, group, head_dim).transpose(1, 0, 2, 3).reshape(num_kv, TILE * group, head_dim)
    scores = (grouped @ k.transpose(1, 2, 0)).reshape(num_kv, TILE, group, num_keys)
    if soft_cap:
        scores = np.float32(soft_cap) * np.tanh(scores / np.float32(soft_cap))
    at = np.arange(first, first + TILE)[:, None]
    key_at = np.arange(key_first, key_first + num_keys)
    hidden = key_at >= ends[:, None]
    if window:
        hidden |= key_at <= at - window
    scores = np.where(hidden[:, None], np.float32(-np.inf), scores)
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks.reshape(num_kv, 1, group, 1))
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)  # [num_kv, TILE, group, 1]
    if sinks is not None:
        total = total + np.exp(sinks.reshape(num_kv, 1, group, 1) - top)
    mixed = (weights.reshape(num_kv, TILE * group, num_keys) @ v.transpose(1, 0, 2)).reshape(num_kv, TILE, group, head_dim)
    result: Float = (mixed / total).transpose(1, 0, 2, 3).reshape(TILE, num_heads, head_dim)
    return result


def _sample_row(x: Float, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    order = np.argsort(-x, kind="stable")
    if 0 < top_k < len(order):
        order = order[:top_k]
    scaled = (x[order].astype(np.float64) - float(x[order[0]])) / temperature
    probs = np.exp(scaled)
    probs /= probs.sum()
    if top_p < 1:
        before = np.cumsum(probs) - probs  # mass ahead of each: kept while it is short of top_p
        probs = probs[: max(1, int(np.count_nonzero(before < top_p)))]
    probs = probs[probs >= min_p * probs[0]]
    cumulative = np.cumsum(probs)
    choice = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(order[min(choice, len(probs) - 1)])
