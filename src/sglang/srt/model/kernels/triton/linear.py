"""Products of rows and packed matrices: out[m, n] = sum over k of x[m, k] w[n, k].

Each output is one sum over blocks of k in ascending order (for quantized matrices one sum for each group of a block, added at the
end), computed by a single program, so its bits depend only on the sizes of blocks. In deterministic mode there is one size for any
number of rows; otherwise few rows get small blocks (the time goes into reading weights) and many rows go to the vendor's library.

Quantized matrices hold levels by row and a scale (and minimum) for each group of a row:

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

from sglang.srt.model.kernels.triton.common import activation, dot, dot_add, round_to, wait_for_inputs


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
def quantized_kernel(
    x, levels, scales, minima, order, bias, out, rows, n, k, x_stride, out_stride,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MIN: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Weights of 4 or 8 bits. Levels are multiplied as they are, group by group, and scales meet the sums: the groups of a block are
    products side by side, each by its own warps, which are added up at the end. k is a multiple of BLOCK_K, which counts values.
    With 4 bits the low and the high halves of the bytes are multiplied by the inputs that belong to them."""
    m_at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    num_rows = tl.load(rows)
    n_at = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    GROUPS: tl.constexpr = BLOCK_K // GROUP
    WIDTH: tl.constexpr = GROUP * BITS // 8  # bytes of a group
    group, byte = tl.arange(0, GROUPS), tl.arange(0, WIDTH)
    m_in, n_in = (m_at < num_rows)[None, :, None], (n_at < n)[None, :, None]
    row_at = n_at.to(tl.int64)[None, :]
    level_at = (
        levels + (row_at * (k * BITS // 8) + group[:, None] * WIDTH)[:, :, None] + byte[None, None, :]
    )  # [groups, n, bytes]
    scale_at = (row_at * (k // GROUP) + group[:, None])[:, None, :]  # [groups, 1, n]
    x_at = x + m_at.to(tl.int64)[None, :, None] * x_stride  # [1, m, 1]
    k_at = (group * GROUP)[:, None, None] + byte[None, None, :]
    wait_for_inputs()
    if tl.program_id(0) * BLOCK_M >= num_rows:
        return
    ones = tl.full([GROUPS, WIDTH, BLOCK_N], 1.0, x.dtype.element_ty)  # adds inputs up where their sums are needed
    acc = tl.zeros([GROUPS, BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
        level = tl.load(level_at + start * BITS // 8, mask=n_in, other=0)
        scale = tl.load(scales + scale_at + start // GROUP, mask=(n_at < n)[None, None, :], other=0.0).to(tl.float32)
        low = _inputs(x_at, order, start + k_at, m_in, HAS_ORDER)
        least = tl.zeros_like(scale)
        if HAS_MIN:
            least += tl.load(minima + scale_at + start // GROUP, mask=(n_at < n)[None, None, :], other=0.0).to(tl.float32)
        if BITS == 4:
            high = _inputs(x_at, order, start + k_at + WIDTH, m_in, HAS_ORDER)
            product = dot(low, tl.permute(_raised(level & 15, x.dtype.element_ty), (0, 2, 1)))
            product = dot_add(high, tl.permute(_raised(level >> 4, x.dtype.element_ty), (0, 2, 1)), product)
            acc += product * scale + dot_add(high, ones, dot(low, ones)) * (least - scale * _raise(x.dtype.element_ty))
        else:
            product = dot(low, tl.permute(level.to(tl.float32).to(x.dtype.element_ty), (0, 2, 1)))
            acc += product * scale
            if HAS_MIN:
                acc += dot(low, ones) * least
    result = tl.sum(acc, axis=0)
    if HAS_BIAS:
        result += tl.load(bias + n_at, mask=n_at < n, other=0.0)[None, :]
    out_at = out + m_at.to(tl.int64)[:, None] * out_stride + n_at[None, :]
    tl.store(out_at, round_to(result, out.dtype.element_ty), mask=(m_at < num_rows)[:, None] & (n_at < n)[None, :])


@triton.jit
def _raise(TYPE: tl.constexpr):
    """The constant that `_raised` adds."""
    return 128.0 if TYPE.is_bf16() else 1024.0 if TYPE.is_fp16() else 0.0


@triton.jit
def _raised(level, TYPE: tl.constexpr):
    """Levels of 4 bits as exact numbers of TYPE, raised by a power of two where that saves converting them: they become the last
    bits of its fraction."""
    if TYPE.is_bf16():
        return (level.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True)
    elif TYPE.is_fp16():
        return (level.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)
    else:
        return level.to(tl.float32).to(TYPE)


@triton.jit
def _inputs(x_at, order, k_at, m_in, HAS_ORDER: tl.constexpr):
    """The inputs that groups of columns multiply, [groups, m, k]."""
    if HAS_ORDER:
        k_at = tl.load(order + k_at)
    return tl.load(x_at + k_at, mask=m_in, other=0.0)


@triton.jit
def quantized_vector_kernel(
    x, levels, scales, minima, order, bias, out, rows, n, k,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MIN: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """quantized_kernel for one row, as vector_kernel: a thread has pieces of a row, their scales and the inputs that belong to them.
    A piece has as many bytes as loads of levels and of inputs can share between the same threads. BLOCK_K is a multiple of 32.
    Grid: (blocks of n)."""
    PER: tl.constexpr = 16  # values of a piece
    LANES: tl.constexpr = PER * BITS // 8
    PIECES: tl.constexpr = BLOCK_K // PER
    n_at = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    piece, lane = tl.arange(0, PIECES), tl.arange(0, LANES)[None, None, :]
    n_in, wide_n = (n_at < n)[:, None], n_at.to(tl.int64)[:, None]
    level_at = levels + (wide_n * (k * BITS // 8) + piece[None, :] * LANES)[:, :, None] + lane
    group_at = wide_n * (k // GROUP) + (piece * PER // GROUP)[None, :]
    k_first = piece // 2 * 32 + piece % 2 * LANES if BITS == 4 else piece * PER
    k_at = tl.broadcast_to(k_first[None, :, None] + lane, [BLOCK_N, PIECES, LANES])
    acc = tl.zeros([BLOCK_N, PIECES, LANES], tl.float32)
    inside = n_in & (piece * PER < k)[None, :]
    level = tl.load(level_at, mask=inside[:, :, None], other=0)
    scale = tl.load(scales + group_at, mask=inside, other=0.0)
    least = scale
    if HAS_MIN:
        least = tl.load(minima + group_at, mask=inside, other=0.0)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if num_rows == 0:
        return
    for start in range(0, k, BLOCK_K):
        factor, offset = scale.to(tl.float32)[:, :, None], tl.zeros_like(scale).to(tl.float32)[:, :, None]
        if HAS_MIN:
            offset = least.to(tl.float32)[:, :, None]
        a = _inputs_of_pieces(x, order, start + k_at, inside[:, :, None], HAS_ORDER)
        if BITS == 4:
            acc += ((level & 15).to(tl.float32) * factor + offset) * a
            b = _inputs_of_pieces(x, order, start + k_at + 16, inside[:, :, None], HAS_ORDER)
            acc += ((level >> 4).to(tl.float32) * factor + offset) * b
        else:
            acc += (level.to(tl.float32) * factor + offset) * a
        next = start + BLOCK_K
        inside = n_in & (piece * PER < k - next)[None, :]
        level = tl.load(level_at + next * BITS // 8, mask=inside[:, :, None], other=0)
        scale = tl.load(scales + group_at + next // GROUP, mask=inside, other=0.0)
        if HAS_MIN:
            least = tl.load(minima + group_at + next // GROUP, mask=inside, other=0.0)
    result = tl.sum(tl.sum(acc, axis=2), axis=1)
    if HAS_BIAS:
        result += tl.load(bias + n_at, mask=n_at < n, other=0.0)
    tl.store(out + n_at, round_to(result, out.dtype.element_ty), mask=n_at < n)


@triton.jit
def _inputs_of_pieces(x, order, k_at, inside, HAS_ORDER: tl.constexpr):
    if HAS_ORDER:
        k_at = tl.load(order + k_at, mask=inside, other=0)
    return tl.load(x + k_at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def dequantize_kernel(
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
def quantize_rows_kernel(x, out, scales, rows, k, x_stride, limit, BLOCK: tl.constexpr):
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
