"""Mixtures of experts: routing, and products of sorted rows with the matrices of their experts (ops.Routes).

A tile of rows belongs to one expert. How many tiles an expert has is known on the device only, so the grid has room for the most there
may be, a tile more for each expert than rows fill, and a program finds out from `starts` which tile it has. Each output is one sum over
blocks of k in ascending order, and blocks have one size for any number of rows.
"""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import activation, dot_add, round_to, sigmoid, wait_for_inputs


@triton.jit
def route_kernel(
    logits, bias, scales, ids, weights, keys, rows, num_experts, stride, scale,
    TOP_K: tl.constexpr, SIGMOID: tl.constexpr, NORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALES: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_BEST: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """A row's experts and weights, and its ids once more as keys to sort by: num_experts for rows beyond the count."""
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.load(rows)
    wait_for_inputs()
    at, k_at = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    if row >= num_rows:
        tl.store(keys + row * TOP_K + k_at, tl.zeros([BLOCK_K], tl.int32) + num_experts, mask=k_at < TOP_K)
        return
    inside = at < num_experts
    x = tl.load(logits + row * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        scores = tl.where(x == x, sigmoid(x), x)
    else:
        e = tl.exp(x - tl.max(tl.where(x == x, x, float("-inf")), axis=0))
        scores = e / tl.sum(e, axis=0)
    choice = scores
    if HAS_BIAS:
        choice += tl.load(bias + at, mask=inside, other=0.0)
    choice = tl.where(choice == choice, tl.maximum(choice, -3e38), -3e38)
    if TOP_GROUPS < GROUPS:
        size = num_experts // GROUPS
        group = at // size
        groups = tl.arange(0, BLOCK_G)
        members = (group[None, :] == groups[:, None]) & inside[None, :]
        of_groups = tl.where(members, choice[None, :], float("-inf"))
        best = tl.max(of_groups, axis=1)
        if GROUP_BEST == 2 and size > 1:
            first = tl.min(tl.where(of_groups == best[:, None], at[None, :], BLOCK), axis=1)
            best += tl.max(tl.where(at[None, :] == first[:, None], float("-inf"), of_groups), axis=1)
        best = tl.where(groups < GROUPS, tl.maximum(best, -3e38), float("-inf"))
        kept = inside & False
        for _ in tl.static_range(TOP_GROUPS):
            g = tl.min(tl.where(best == tl.max(best, axis=0), groups, BLOCK_G), axis=0)
            kept = kept | (group == g)
            best = tl.where(groups == g, float("-inf"), best)
        choice = tl.where(kept, choice, float("-inf"))
    choice = tl.where(inside, choice, float("-inf"))
    chosen, picked = tl.zeros([BLOCK_K], tl.int32), tl.zeros([BLOCK_K], tl.float32)
    for j in tl.static_range(TOP_K):
        e = tl.min(tl.where(choice == tl.max(choice, axis=0), at, BLOCK), axis=0)
        chosen = tl.where(k_at == j, e, chosen)
        picked = tl.where(k_at == j, tl.sum(tl.where(at == e, scores, 0.0), axis=0), picked)
        choice = tl.where(at == e, float("-inf"), choice)
    if NORMALIZE:
        total = tl.sum(picked, axis=0)
        if SIGMOID:
            total += 1e-20
        picked /= total
    picked *= scale
    if HAS_SCALES:
        picked *= tl.load(scales + chosen, mask=k_at < TOP_K, other=0.0)
    tl.store(ids + row * TOP_K + k_at, chosen, mask=k_at < TOP_K)
    tl.store(keys + row * TOP_K + k_at, chosen, mask=k_at < TOP_K)
    tl.store(weights + row * TOP_K + k_at, picked, mask=k_at < TOP_K)


@triton.jit
def _tile_of(starts, num_experts, tile, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr):
    """(expert, first place, end) of a tile; an expert of num_experts where there are not so many tiles."""
    at = tl.arange(0, BLOCK_E)
    begin = tl.load(starts + at, mask=at < num_experts, other=0)
    end = tl.load(starts + at + 1, mask=at < num_experts, other=0)
    tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
    after = tl.cumsum(tiles, axis=0)
    expert = tl.sum((after <= tile).to(tl.int32), axis=0)
    before = tl.sum(tl.where(at < expert, tiles, 0), axis=0)
    first = tl.sum(tl.where(at == expert, begin, 0), axis=0) + (tile - before) * BLOCK_M
    return expert, first, tl.sum(tl.where(at == expert, end, 0), axis=0)


@triton.jit
def _weights_of(
    w,
    scales,
    minima,
    row_at,
    start,
    k,
    n_in,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_MIN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Columns start .. start + BLOCK_K - 1 of rows `row_at` of a matrix, [k, n]: as stored, or from levels (triton/linear.py)."""
    k_at = start + tl.arange(0, BLOCK_K)
    inside = n_in[None, :] & (k_at < k)[:, None]
    row = row_at[None, :]
    if BITS == 16:
        values = tl.load(w + row * k + k_at[:, None], mask=inside, other=0.0)
    else:
        if BITS == 4:
            byte = tl.load(w + row * (k // 2) + (k_at // 32 * 16 + k_at % 16)[:, None], mask=inside, other=0)
            level = tl.where((k_at % 32 < 16)[:, None], byte & 15, byte >> 4).to(tl.float32)
        else:
            level = tl.load(w + row * k + k_at[:, None], mask=inside, other=0).to(tl.float32)
        group = row * (k // GROUP) + (k_at // GROUP)[:, None]
        values = level * tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
        if HAS_MIN:
            values += tl.load(minima + group, mask=inside, other=0.0).to(tl.float32)
    return values


@triton.jit
def experts_kernel(
    x, w, scales, minima, bias, order, starts, out, rows, num_experts, n, k, top_k, x_stride, out_stride,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MIN: tl.constexpr, HAS_BIAS: tl.constexpr, FIRST: tl.constexpr, FN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """FIRST is the number of matrices that an expert has here, [n, k] each, gate above up: x has the rows of the step, and out gets rows
    of sorted pairs. 0: x has rows of sorted pairs, and out gets those of pairs in their own order. Grid: (tiles, blocks of n)."""
    GATED: tl.constexpr = FIRST == 2
    wait_for_inputs()
    if tl.load(rows) == 0:
        return
    expert, first, end = _tile_of(starts, num_experts, tl.program_id(0), BLOCK_M, BLOCK_E)
    if expert >= num_experts:
        return
    place = first + tl.arange(0, BLOCK_M)
    m_in = place < end
    pair = tl.load(order + place, mask=m_in, other=0)
    source = pair // top_k if FIRST else place
    target = place if FIRST else pair
    n_at = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_in = n_at < n
    per = 2 * n if GATED else n
    row_at = expert.to(tl.int64) * per + n_at
    k_at = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = acc
    for start in range(0, k, BLOCK_K):
        a = tl.load(
            x + source.to(tl.int64)[:, None] * x_stride + (start + k_at)[None, :],
            mask=m_in[:, None] & (start + k_at < k)[None, :], other=0.0,
        )  # fmt: skip
        b = _weights_of(w, scales, minima, row_at, start, k, n_in, BITS, GROUP, HAS_MIN, BLOCK_K)
        acc = dot_add(a, round_to(b, x.dtype.element_ty), acc)
        if GATED:
            b = _weights_of(w, scales, minima, row_at + n, start, k, n_in, BITS, GROUP, HAS_MIN, BLOCK_K)
            up = dot_add(a, round_to(b, x.dtype.element_ty), up)
    if HAS_BIAS:
        acc += tl.load(bias + row_at, mask=n_in, other=0.0)[None, :]
        if GATED:
            up += tl.load(bias + row_at + n, mask=n_in, other=0.0)[None, :]
    if GATED:
        acc = _gated(round_to(acc, out.dtype.element_ty).to(tl.float32), round_to(up, out.dtype.element_ty).to(tl.float32), FN)
    elif FIRST:
        acc = activation(round_to(acc, out.dtype.element_ty).to(tl.float32), FN)
    out_at = out + target.to(tl.int64)[:, None] * out_stride + n_at[None, :]
    tl.store(out_at, round_to(acc, out.dtype.element_ty), mask=m_in[:, None] & n_in[None, :])


@triton.jit
def heads_kernel(
    x, w, out, rows, n, k, x_stride, out_stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """ops.heads_linear. w: [heads * n, k]. Grid: (tiles of rows, blocks of n, heads)."""
    wait_for_inputs()
    m_at, n_at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    head, k_at = tl.program_id(2).to(tl.int64), tl.arange(0, BLOCK_K)
    m_in, n_in = m_at < tl.load(rows), n_at < n
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, k, BLOCK_K):
        inside = start + k_at < k
        a = tl.load(
            x + m_at.to(tl.int64)[:, None] * x_stride + head * k + (start + k_at)[None, :],
            mask=m_in[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            w + (head * n + n_at)[None, :] * k + (start + k_at)[:, None], mask=inside[:, None] & n_in[None, :], other=0.0
        )
        acc = dot_add(a, round_to(b, x.dtype.element_ty), acc)
    out_at = out + m_at.to(tl.int64)[:, None] * out_stride + head * n + n_at[None, :]
    tl.store(out_at, round_to(acc, out.dtype.element_ty), mask=m_in[:, None] & n_in[None, :])


@triton.jit
def _gated(gate, up, FN: tl.constexpr):
    """ops.ExpertGate."""
    if FN == "clamped_silu":
        gate, up = tl.minimum(gate, 7.0), tl.minimum(tl.maximum(up, -7.0), 7.0)
        return gate * sigmoid(1.702 * gate) * (up + 1.0)
    else:
        return activation(gate, FN) * up


@triton.jit
def combine_kernel(pairs, weights, out, rows, top_k, width, out_stride, BLOCK: tl.constexpr):
    """out[r] = sum over a row's choices, ascending, of weight * pairs[r * k + j]. Grid: (rows, ranges of columns)."""
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if row >= num_rows:
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(top_k):
        values = tl.load(pairs + (row * top_k + j) * width + at, mask=inside, other=0.0)
        total += tl.load(weights + row * top_k + j) * values
    tl.store(out + row * out_stride + at, round_to(total, out.dtype.element_ty), mask=inside)
