"""Products of rows and packed matrices: out[m, n] = sum over k of x[m, k] w[n, k].

Every output is one chain over blocks of k in ascending order, by programs that own it alone, so its bits depend on the sizes of
blocks and on nothing else. In deterministic mode there is one size for any number of rows; otherwise few rows get small blocks
(reading weights is what takes the time) and many rows go to the vendor's library.

Quantised matrices hold levels by row and a scale (and minimum) for each group of a row:

    4 bits   byte j of 16 in a block of 32 k:  low half k = j, high half k = j + 16       uint8 [n, k / 2]
    8 bits   one signed byte each                                                         int8  [n, k]
    value = scale[n, k // GROUP] * level + minimum[n, k // GROUP]                         float16 [n, k / GROUP]

Columns may be in another order than the inputs (GPTQ's act-order): `order` says which input each of them multiplies.
"""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import activation, dot_add, round_to, wait_for_inputs


@triton.jit
def linear_kernel(
    x, w, bias, out, rows, n, k, x_stride, out_stride,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, FN: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Dense weights. GATED: w is [2 n, k], gate rows before up rows, and out = FN(gate) * up. Grid: (blocks of rows, blocks of n),
    neighbours share a block of w."""
    m_at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if tl.program_id(0) * BLOCK_M >= num_rows:
        return
    n_at = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k_at = tl.arange(0, BLOCK_K)
    x_at = x + m_at.to(tl.int64)[:, None] * x_stride + k_at[None, :]
    w_at = w + n_at.to(tl.int64)[None, :] * k + k_at[:, None]
    m_in, n_in = (m_at < num_rows)[:, None], (n_at < n)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = acc
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            a = tl.load(x_at + start, mask=m_in, other=0.0)
            acc = dot_add(a, tl.load(w_at + start, mask=n_in, other=0.0), acc)
            if GATED:
                up = dot_add(a, tl.load(w_at + start + n.to(tl.int64) * k, mask=n_in, other=0.0), up)
        else:
            k_in = k_at < k - start
            a = tl.load(x_at + start, mask=m_in & k_in[None, :], other=0.0)
            acc = dot_add(a, tl.load(w_at + start, mask=n_in & k_in[:, None], other=0.0), acc)
            if GATED:
                up = dot_add(a, tl.load(w_at + start + n.to(tl.int64) * k, mask=n_in & k_in[:, None], other=0.0), up)
    if HAS_BIAS:
        acc += tl.load(bias + n_at, mask=n_at < n, other=0.0)[None, :]
    if GATED:
        gate = round_to(acc, out.dtype.element_ty).to(tl.float32)
        acc = activation(gate, FN) * round_to(up, out.dtype.element_ty).to(tl.float32)
    out_at = out + m_at.to(tl.int64)[:, None] * out_stride + n_at[None, :]
    tl.store(out_at, round_to(acc, out.dtype.element_ty), mask=m_in & n_in)


@triton.jit
def vector_kernel(
    x, w, bias, out, rows, n, k,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, FN: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """linear_kernel for one row: weights go from memory to registers, in loads of 16 bytes, and meet their input there, without
    shared memory or tensor cores. The first weights are on their way before the input is there. Grid: (blocks of n)."""
    n_at = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k_at = tl.arange(0, BLOCK_K)
    w_at = w + n_at.to(tl.int64)[:, None] * k + k_at[None, :]
    # each thread loads the inputs of its own weights, from the nearest cache: passing them on would take barriers
    x_at = x + tl.broadcast_to(k_at[None, :], [BLOCK_N, BLOCK_K])
    second = n.to(tl.int64) * k
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up = acc
    n_in = (n_at < n)[:, None]
    inside = n_in & (k_at < k)[None, :]
    weights = tl.load(w_at, mask=inside, other=0.0)
    if GATED:
        more = tl.load(w_at + second, mask=inside, other=0.0)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if num_rows == 0:
        return
    for start in range(0, k, BLOCK_K):
        a = tl.load(x_at + start, mask=inside, other=0.0).to(tl.float32)
        next = start + BLOCK_K
        inside = n_in & (k_at < k - next)[None, :]
        acc += weights.to(tl.float32) * a
        weights = tl.load(w_at + next, mask=inside, other=0.0)
        if GATED:
            up += more.to(tl.float32) * a
            more = tl.load(w_at + second + next, mask=inside, other=0.0)
    result = tl.sum(acc, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + n_at, mask=n_at < n, other=0.0)
    if GATED:
        gate = round_to(result, out.dtype.element_ty).to(tl.float32)
        result = activation(gate, FN) * round_to(tl.sum(up, axis=1), out.dtype.element_ty).to(tl.float32)
    tl.store(out + n_at, round_to(result, out.dtype.element_ty), mask=n_at < n)


@triton.jit
def quantised_kernel(
    x, levels, scales, minima, order, bias, out, rows, n, k, x_stride, out_stride,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MIN: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Weights of 4 or 8 bits, made numbers of x's type in registers. k is a multiple of BLOCK_K, which counts values; a program
    of 4 bits multiplies the low and the high halves of its bytes by the inputs that belong to them."""
    m_at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if tl.program_id(0) * BLOCK_M >= num_rows:
        return
    n_at = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_in, n_in = (m_at < num_rows)[:, None], (n_at < n)[None, :]
    x_row = x + m_at.to(tl.int64)[:, None] * x_stride
    wide_n = n_at.to(tl.int64)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        if BITS == 4:
            j = tl.arange(0, BLOCK_K // 2)
            k_at = start + j // 16 * 32 + j % 16
            byte = tl.load(levels + wide_n * (k // 2) + (start // 2 + j)[:, None], mask=n_in, other=0)
            # both halves of a byte lie in one group of 32 or more
            scale, least = _group_values(scales, minima, wide_n, k, k_at, n_in, GROUP, HAS_MIN)
            low = round_to((byte & 15).to(tl.float32) * scale + least, x.dtype.element_ty)
            high = round_to((byte >> 4).to(tl.float32) * scale + least, x.dtype.element_ty)
            acc = dot_add(_inputs(x_row, order, k_at, m_in, HAS_ORDER), low, acc)
            acc = dot_add(_inputs(x_row, order, k_at + 16, m_in, HAS_ORDER), high, acc)
        else:
            k_at = start + tl.arange(0, BLOCK_K)
            level = tl.load(levels + wide_n * k + k_at[:, None], mask=n_in, other=0).to(tl.float32)
            scale, least = _group_values(scales, minima, wide_n, k, k_at, n_in, GROUP, HAS_MIN)
            values = round_to(level * scale + least, x.dtype.element_ty)
            acc = dot_add(_inputs(x_row, order, k_at, m_in, HAS_ORDER), values, acc)
    if HAS_BIAS:
        acc += tl.load(bias + n_at, mask=n_at < n, other=0.0)[None, :]
    out_at = out + m_at.to(tl.int64)[:, None] * out_stride + n_at[None, :]
    tl.store(out_at, round_to(acc, out.dtype.element_ty), mask=m_in & n_in)


@triton.jit
def _inputs(x_row, order, k_at, m_in, HAS_ORDER: tl.constexpr):
    """The inputs that a tile's columns multiply, [m, k]."""
    if HAS_ORDER:
        k_at = tl.load(order + k_at)
    return tl.load(x_row + k_at[None, :], mask=m_in, other=0.0)


@triton.jit
def _group_values(scales, minima, wide_n, k, k_at, n_in, GROUP: tl.constexpr, HAS_MIN: tl.constexpr):
    """Scale and minimum of each value of a tile [k, n]."""
    at = wide_n * (k // GROUP) + (k_at // GROUP)[:, None]
    scale = tl.load(scales + at, mask=n_in, other=0.0).to(tl.float32)
    if HAS_MIN:
        least = tl.load(minima + at, mask=n_in, other=0.0).to(tl.float32)
    else:
        least = tl.zeros_like(scale)
    return scale, least


@triton.jit
def dequantise_kernel(
    levels, scales, minima, order, out, n, k,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MIN: tl.constexpr, HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The whole matrix as numbers of out's type, [n, k], in order: for products of many rows. Grid: (n, ranges of k)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < k
    if BITS == 4:
        byte = tl.load(levels + row * (k // 2) + at // 32 * 16 + at % 16, mask=inside, other=0)
        level = tl.where(at % 32 < 16, byte & 15, byte >> 4).to(tl.float32)
    else:
        level = tl.load(levels + row * k + at, mask=inside, other=0).to(tl.float32)
    group = row * (k // GROUP) + at // GROUP
    values = level * tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    if HAS_MIN:
        values += tl.load(minima + group, mask=inside, other=0.0).to(tl.float32)
    column = at
    if HAS_ORDER:
        column = tl.load(order + at, mask=inside, other=0)
    tl.store(out + row * k + column, round_to(values, out.dtype.element_ty), mask=inside)


@triton.jit
def quantise_rows_kernel(x, out, scales, rows, k, x_stride, limit, BLOCK: tl.constexpr):
    """Rows as float8 with a scale each: out[m] = x[m] / scale[m], scale[m] = max |x[m]| / limit. out: [max_rows, k]."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    top = tl.zeros([BLOCK], tl.float32)
    for start in range(0, k, BLOCK):
        at = start + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.abs(tl.load(x + row * x_stride + at, mask=at < k, other=0.0).to(tl.float32)))
    scale = tl.maximum(tl.max(top, axis=0) / limit, 1e-12)
    tl.store(scales + row, scale)
    for start in range(0, k, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(x + row * x_stride + at, mask=at < k, other=0.0).to(tl.float32) / scale
        tl.store(out + row * k + at, round_to(values, out.dtype.element_ty), mask=at < k)
