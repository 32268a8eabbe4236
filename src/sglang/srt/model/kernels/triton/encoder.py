"""Bidirectional attention inside segments of rows: images, windows of images, texts of an encoder."""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import LOG2E, dot, dot_add, round_to


@triton.jit
def segment_attention_kernel(
    qkv, starts, out, bias, begin, end, num_segments, steps, num_heads, head_dim, scale, window, reach,
    qkv_stride, out_stride, bias_stride,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr, TYPE: tl.constexpr, WINDOW: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """ops.segment_attention. Grid: (tiles of ROWS rows in begin .. end, heads). Rows of a tile may belong to several segments: keys
    run over all of them and each row sees its own. Tiles lie at multiples of ROWS, so a row's sums do not depend on
    `begin`. `reach`: half the width of `bias`. `steps`: halvings that bring num_segments to 1. Products are taken
    in TYPE."""
    head = tl.program_id(1)
    row = (begin // ROWS + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    there = (row >= begin) & (row < end)
    num_rows = tl.load(starts + num_segments)
    exists = row < num_rows
    # the segment of each row by bisection: the last one that starts at or before it
    left = tl.zeros([ROWS], tl.int32)
    right = left + num_segments
    for _ in range(steps):
        middle = (left + right) // 2
        beyond = tl.load(starts + middle, mask=exists, other=0) > row
        right = tl.where(beyond, middle, right)
        left = tl.where(beyond, left, middle)
    low = tl.where(exists, tl.load(starts + left, mask=exists, other=0), 0)
    high = tl.where(exists, tl.load(starts + left + 1, mask=exists, other=0), 0)
    first = tl.min(tl.where(exists, low, num_rows), axis=0)
    last = tl.max(high, axis=0)
    if WINDOW:
        low = tl.maximum(low, row - window)
        high = tl.minimum(high, row + window + 1)
        first = tl.minimum(tl.maximum(first, tl.min(row, axis=0) - window), num_rows)
        last = tl.minimum(last, tl.max(row, axis=0) + window + 1)

    dim_at = tl.arange(0, BLOCK_D)
    dim_there = dim_at < head_dim
    wide = row.to(tl.int64)
    q_mask = exists[:, None] & dim_there[None, :]
    q = round_to(tl.load(qkv + wide[:, None] * qkv_stride + head * head_dim + dim_at[None, :], mask=q_mask, other=0.0), TYPE)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    z = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for start in range(first // KEYS * KEYS, last, KEYS):
        key = start + tl.arange(0, KEYS)
        key_there = key < num_rows
        key_at = qkv + key.to(tl.int64) * qkv_stride
        k_at = key_at[None, :] + (num_heads + head) * head_dim + dim_at[:, None]
        v_at = key_at[:, None] + (2 * num_heads + head) * head_dim + dim_at[None, :]
        k = round_to(tl.load(k_at, mask=key_there[None, :] & dim_there[:, None], other=0.0), TYPE)
        v = round_to(tl.load(v_at, mask=key_there[:, None] & dim_there[None, :], other=0.0), TYPE)
        seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
        s = dot(q, k) * (scale * LOG2E)
        if BIAS:
            away = tl.minimum(tl.maximum(key[None, :] - row[:, None], -reach), reach)
            s += tl.load(bias + head * bias_stride + away + reach) * LOG2E
        s = tl.where(seen, s, float("-inf"))
        top = tl.maximum(m, tl.max(s, axis=1))
        safe = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(s - safe[:, None])
        a = tl.exp2(m - safe)
        m, z, acc = top, z * a + tl.sum(p, axis=1), dot_add(round_to(p, v.dtype), v, acc * a[:, None])
    z = tl.where(z > 0, z, 1.0)
    out_at = out + wide[:, None] * out_stride + head * head_dim + dim_at[None, :]
    tl.store(out_at, round_to(acc / z[:, None], out.dtype.element_ty), mask=there[:, None] & dim_there[None, :])
