"""Per-head norms, rotation of q and k, and the store of k and v: one program per row and few heads.

The two halves of a pair are read and written by the same thread, so turning q in place needs no barrier.
"""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import round_to, wait_for_inputs


@triton.jit
def rope_store_kernel(
    qkv, k_pool, v_pool, positions, slots, rows, cos, sin, q_weight, k_weight, q_growth,
    qkv_stride, table_stride, head_stride, num_heads, num_kv_heads, head_dim, pairs, q_scale, eps,
    HAS_NORM: tl.constexpr, NORM_LAST: tl.constexpr, HAS_GROWTH: tl.constexpr, HEADS: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """ops.rope_store. Heads of a row are numbered q, k, v; a program has HEADS of them. Pools: [num_kv_heads, slots, head_dim],
    `head_stride` elements from head to head. BLOCK_REST is 0 if the whole head rotates."""
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.load(rows)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_q = head < num_heads
    is_k = (head >= num_heads) & (head < num_heads + num_kv_heads)
    is_v = (head >= num_heads + num_kv_heads) & (head < num_heads + 2 * num_kv_heads)
    known = head < num_heads + 2 * num_kv_heads
    at = tl.arange(0, BLOCK_PAIRS)
    inside = known[:, None] & (at < pairs)[None, :]
    position = tl.load(positions + row).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    cosine = tl.load(cos + position * table_stride + at, mask=at < pairs, other=0.0)[None, :]
    sine = tl.load(sin + position * table_stride + at, mask=at < pairs, other=0.0)[None, :]
    wait_for_inputs()
    if row >= num_rows:
        return
    first = qkv + row * qkv_stride + (head * head_dim)[:, None] + at[None, :]
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + pairs, mask=inside, other=0.0).to(tl.float32)
    raw_a, raw_b = a, b
    if BLOCK_REST > 0:
        rest = 2 * pairs + tl.arange(0, BLOCK_REST)
        rest_inside = known[:, None] & (rest < head_dim)[None, :]
        rest_at = qkv + row * qkv_stride + (head * head_dim)[:, None] + rest[None, :]
        c = tl.load(rest_at, mask=rest_inside, other=0.0).to(tl.float32)
        raw_c = c
    if NORM_LAST:
        a, b = a * cosine - b * sine, b * cosine + a * sine
    if HAS_NORM:
        total = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
        if BLOCK_REST > 0:
            total += tl.sum(c * c, axis=1)
        root = tl.sqrt(total / head_dim + eps)[:, None]
        a = a / root * _weights(q_weight, k_weight, at, at < pairs, is_q)
        b = b / root * _weights(q_weight + pairs, k_weight + pairs, at, at < pairs, is_q)
        if BLOCK_REST > 0:
            c = c / root * _weights(q_weight, k_weight, rest, rest < head_dim, is_q)
    if not NORM_LAST:
        a, b = a * cosine - b * sine, b * cosine + a * sine
    if HAS_GROWTH:
        q_scale = q_scale * tl.load(q_growth + position)
    scale = tl.where(is_q, q_scale, 1.0)[:, None]
    keep = is_v[:, None]
    new_a = tl.where(keep, raw_a, a * scale)
    new_b = tl.where(keep, raw_b, b * scale)
    q_mask = is_q[:, None] & inside
    tl.store(first, round_to(new_a, qkv.dtype.element_ty), mask=q_mask)
    tl.store(first + pairs, round_to(new_b, qkv.dtype.element_ty), mask=q_mask)
    kv_head = tl.where(is_k, head - num_heads, head - num_heads - num_kv_heads).to(tl.int64)
    target = (kv_head * head_stride + slot * head_dim)[:, None]
    _store_pools(k_pool, v_pool, target + at[None, :], new_a, is_k[:, None] & inside, is_v[:, None] & inside)
    _store_pools(k_pool, v_pool, target + pairs + at[None, :], new_b, is_k[:, None] & inside, is_v[:, None] & inside)
    if BLOCK_REST > 0:
        new_c = tl.where(keep, raw_c, c * scale)
        tl.store(rest_at, round_to(new_c, qkv.dtype.element_ty), mask=is_q[:, None] & rest_inside)
        _store_pools(k_pool, v_pool, target + rest[None, :], new_c, is_k[:, None] & rest_inside, is_v[:, None] & rest_inside)


@triton.jit
def _weights(q_weight, k_weight, at, inside, is_q):
    """The norm weights of each head, [HEADS, at]."""
    q = tl.load(q_weight + at, mask=inside, other=0.0)[None, :]
    k = tl.load(k_weight + at, mask=inside, other=0.0)[None, :]
    return tl.where(is_q[:, None], q, k)


@triton.jit
def _store_pools(k_pool, v_pool, at, values, k_mask, v_mask):
    tl.store(k_pool + at, round_to(values, k_pool.dtype.element_ty), mask=k_mask)
    tl.store(v_pool + at, round_to(values, v_pool.dtype.element_ty), mask=v_mask)
